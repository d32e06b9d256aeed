"""The worker's side of the network: one connection to a server, its calls and payloads.

`client` pulls and pushes; `errors` says what a failed call means, `retry` how long it is tried again;
`payloads` has uploads, downloads and the connections beside gRPC. `varangian.worker.loop` and `host` import
it, and so do adapters for training loops of others; it knows no model and no data set.
"""
