"""Rounds of a server inside the loop of a training framework: an optimizer whose step pushes gradients.

`steps` has the rounds and that optimizer. The adapters for Lightning and Hugging Face import it; it uses
`varangian.client` and knows no framework.
"""
