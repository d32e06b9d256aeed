"""What a run tells about itself: one record for each round, and where it stands.

The rounds fill it, the transport and the launcher read it. It imports the protocol and the model's side.
"""
