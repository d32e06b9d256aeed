"""Payloads: vectors and parameters as the bytes that are sent, and their receipt.

`encoding` says where each number lies and has the digest, `int8_blocks` is one way to write numbers,
`chunks` the messages in which a payload is cut, `receiving` what counts and hashes its bytes on arrival.
"""
