package main

const keyError = "error"
