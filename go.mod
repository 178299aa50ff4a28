module muxproxy

go 1.26.0
