"""The Python client: a worker inside a training loop of the user's own.

`connect` opens it, `worker` and `async_worker` are the two forms of it, `exchange` what they share;
`session` makes the calls on the event loop of `background`. `training` has what a step needs of the user's
model, scaler and momentum, `outer` takes outer steps.
`varangian.connect` and other names of the package import it, and so do adapters for training loops of
others; it knows no server, no settings and no data set.
"""
