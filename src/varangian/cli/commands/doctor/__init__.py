"""`varangian doctor`: checks of this machine, a run on it, certificates, and the way to a server.

command.py       what is asked, and the order of the checks
finding.py       one line of the report, and a limit for work that may hang
machine.py       versions, open files, processors, memory, clock, GPU
disk.py          folders: whether they can be written, how much room they have and how fast they are
run.py           the settings of a run, and what it needs of this machine
certificates.py  bundles: dates, names, permissions, revocation
connection.py    name, proxy, addresses, the server's answer, its clock and release, the way of payloads
report.py        the report for people and for programs

Only run.py, and a child process of machine.py, import torch.
"""
