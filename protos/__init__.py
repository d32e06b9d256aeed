"""The wire: what is sent, how it is framed, and what is refused before it is read.

`ps.proto` has the messages, `layout` and `codec` what a vector means and how it is cut; `network` the
settings of connections, `data_channel` payloads beside gRPC, `identity` certificates. Both ends import it;
it imports neither, and nothing of the mathematics.
"""
