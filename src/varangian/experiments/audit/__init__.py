"""`varangian audit`: whether the record of a run is as its server wrote it.

`command` prints, `chain_check` follows the chain of `rounds.jsonl` with its signatures, `replay` computes
rounds again from kept rows. The command line imports `command`, by name; it writes nothing.
"""
