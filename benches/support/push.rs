//! The protobuf push of the load generator's shape.

/// Lines of each stream.
pub const LINES: usize = 100;

/// A push of these lines, [`LINES`] a stream, not compressed.
pub fn message(lines: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for (s, lines) in lines.chunks(LINES).enumerate() {
        let mut stream = Vec::new();
        field(1, format!("{{job=\"bench\", host=\"node-{s}\", env=\"test\"}}").as_bytes(), &mut stream);
        for (i, line) in lines.iter().enumerate() {
            let mut timestamp = vec![0x08];
            prost::encoding::encode_varint(1_795_338_000, &mut timestamp);
            timestamp.push(0x10);
            prost::encoding::encode_varint(i as u64 * 1_000_003, &mut timestamp);
            let mut entry = Vec::new();
            field(1, &timestamp, &mut entry);
            field(2, line.as_bytes(), &mut entry);
            field(2, &entry, &mut stream);
        }
        field(1, &stream, &mut out);
    }
    out
}

fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
