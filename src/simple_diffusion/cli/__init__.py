"""The command line: one file a command. Imports nothing heavy."""
