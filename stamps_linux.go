package main

import "syscall"

// stamps gives when the content and when the inode of a file changed last; Linux and Darwin name the fields differently.
func stamps(st *syscall.Stat_t) (mtime, ctime syscall.Timespec) { return st.Mtim, st.Ctim }
