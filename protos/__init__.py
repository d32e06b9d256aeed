"""The wire format: what is sent, how it is framed, and what is refused before it is read."""
