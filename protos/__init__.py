"""The wire: what is sent, how it is framed, and what is refused before it is read.

`ps.proto` has the messages and `messages` their limits, `contract` and `layout` what both ends agree on;
`payloads` has how a vector is written, cut and received, `network` the settings of connections,
`data_channel` payloads beside gRPC, `identity` certificates. Both ends import it; it imports neither.
"""
