"""The commands, one in each file: from parsed arguments to an exit code.

`varangian.cli.main` imports the one that was typed, by name. A command imports what it needs of the
package; nothing below the command line may import a command.
"""
