"""Membership: changes of the workers of a run while it goes on, and the file that outlives its server.

`desk` decides whether a change keeps the promises of the run, `changed_settings` has the settings with
other workers, and `members_file` is where these are kept. Only the launcher imports it.
"""
