"""The commands of the command line: each module's `main(arguments)` parses them and returns an exit
code."""
