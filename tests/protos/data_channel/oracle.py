"""The package `tink`, whose streaming AEAD ours has to be byte for byte.

`python tests/protos/data_channel/oracle.py` prints the vectors of `vectors.json` that Tink has made.
"""

import hashlib
import io
import json

TRANSFER = (3, "push", "run-1", 7, "w03")
"""Protocol, direction, run, round and worker of the vectors that Tink has made."""


def plain(size):
    """Bytes that are the same each time, and of which no two segments are alike."""
    blocks = (hashlib.sha256(at.to_bytes(8, "big")).digest() for at in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def primitive(key, segment=256 << 10, derived=32, algorithm="SHA256"):
    """A streaming AEAD of Tink under a key of ours."""
    from tink import proto_keyset_format, secret_key_access, streaming_aead
    from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=segment,
        derived_key_size=derived,
        hkdf_hash_type=common_pb2.HashType.Value(algorithm),
    )
    made = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, key_value=key, params=params)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=made.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    one = tink_pb2.Keyset.Key(
        key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW
    )
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[one])
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class _Kept(io.BytesIO):
    """Tink closes what it has written to."""

    def close(self):
        self.data = self.getvalue()
        super().close()


def encrypted(aead, associated, data):
    kept = _Kept()
    with aead.new_encrypting_stream(kept, associated) as stream:
        stream.write(data)
    return kept.data


def decrypted(aead, associated, data):
    with aead.new_decrypting_stream(io.BytesIO(data), associated) as stream:
        return stream.read()


def made(sizes):
    """Vectors at the parameters of payloads. The ciphertext is named by its SHA-256."""
    from varangian.protos.data_channel.associated_data import AssociatedData

    key = bytes(range(32))
    for size in sizes:
        data = encrypted(primitive(key), AssociatedData(*TRANSFER, size).associated(), plain(size))
        digest = hashlib.sha256(data).hexdigest()
        yield {"key": key.hex(), "size": size, "header": data[:40].hex(), "sha256": digest}


if __name__ == "__main__":
    room = (256 << 10) - 56
    print(json.dumps([*made((1, room - 1, room, room + 1, room + (256 << 10) - 16, 1_000_003))], indent=1))
