"""Transports of the wire benchmark, one in each file: Varangian's, raw TCP, gRPC, other systems'.

`catalogue` names them and says what each needs; `processes` runs one with its server and its workers in
processes of their own. `varangian.bench.wire.measure` and `varangian.bench.rounds` import them.
"""
