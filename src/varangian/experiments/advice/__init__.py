"""`varangian advise`: the rule to use for n workers, f attackers and the data they have.

`evidence` reads the measured tables that are shipped with the package, `question` what is asked, `choice`
picks a rule by the worst case, `advice` makes sentences of it. It reads no runs of the user. The command
line imports `command`, by name, and `varangian.advise` the rest.
"""
