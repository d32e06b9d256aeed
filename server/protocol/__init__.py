"""The protocol of a run: who may push, for which model, until when. No clock, no tensor, no socket.

Events go in, effects come out, and time is an argument: a test can play any history. Every other room of
the server may import it; it imports nothing but the standard library.
"""
