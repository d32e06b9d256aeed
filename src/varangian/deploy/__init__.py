"""Deployments: the tasks of a run as files for an engine that starts them on one machine or many.

`plan` says which tasks a run has, without any engine. Each engine has a module that renders them as the
files that it reads: `varangian.cli.arguments.deploy` names them, and `command` is `varangian deploy`.
"""
