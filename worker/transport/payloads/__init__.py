"""Payloads at a worker: uploads of vectors and downloads of models, over gRPC or on a data connection."""
