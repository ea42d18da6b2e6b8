//! Log lines of several kinds, made up, varied and the same in every run.

/// About `bytes` bytes of lines, none repeated: a compressor would find it again.
pub fn lines(bytes: usize) -> Vec<String> {
    let mut out = Vec::new();
    let (mut size, mut state) = (0, 0x9E37_79B9_7F4A_7C15u64);
    while size < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let line = line(out.len() as u64, state);
        size += line.len();
        out.push(line);
    }
    out
}

fn line(n: u64, r: u64) -> String {
    let (ip, port, ms, id) = (r % 251, 1024 + r % 60_000, r % 4999, r >> 24);
    let second = n / 40 % 60;
    match n % 6 {
        0 => format!(
            "081109 2036{second:02} {} INFO dfs.DataNode$PacketResponder: PacketResponder {} for block blk_{id} terminating",
            r % 300,
            r % 3
        ),
        1 => format!(
            "2026-11-22 10:11:{second:02},{:03} INFO [main] org.apache.hadoop.mapreduce.v2.app.MRAppMaster: Executing with tokens for job_{id}_{:04}",
            ms % 1000,
            n % 9999
        ),
        2 => format!(
            "Dec 10 06:55:{second:02} LabSZ sshd[{port}]: Failed password for invalid user user{} from 173.234.31.{ip} port {port} ssh2",
            r % 97
        ),
        3 => format!(
            "nova-api.log 2026-11-22 00:00:{second:02}.{:03} {port} INFO nova.osapi_compute.wsgi.server [req-{id:x}] 10.11.10.{ip} \"GET /v2/{id:x}/servers/detail HTTP/1.1\" status: 200 len: {} time: 0.{ms}",
            ms % 1000,
            r % 2000
        ),
        4 => format!(
            "level=warn ts=2026-11-22T10:11:{second:02}Z caller=flush.go:{} msg=\"slow request\" tenant={} duration={ms}ms bytes={}",
            r % 900,
            r % 40,
            r % 999_983
        ),
        _ => format!(
            "{{\"level\":\"info\",\"time\":\"2026-11-22T10:11:{second:02}Z\",\"path\":\"/api/v1/items/{id:x}\",\"status\":{},\"ms\":{ms}}}",
            if r.is_multiple_of(17) { 500 } else { 200 }
        ),
    }
}
