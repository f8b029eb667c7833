"""The command line: a module a command, which declares its arguments beside what it does and prints.

Read main.py (exit statuses), then shared_arguments.py, then a command. The work is done in runs/.
"""
