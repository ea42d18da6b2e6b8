//! What no single value can show: bounds, and values that contradict each other.

use super::units::{Word, show_bytes, show_duration};
use super::{ClientAuth, Config, Target, TlsConfig};
use crate::model::Tenant;
use axum::http::uri::Authority;
use std::collections::BTreeSet;
use std::time::Duration;

/// A key's path, and what is wrong with its value.
type Wrong = (&'static str, String);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Everything that is wrong with a configuration.
pub(super) fn all(config: &Config) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    general(config, &mut wrong);
    tls(&config.server.http_tls_config, &HTTP_TLS, &mut wrong);
    tls(&config.server.grpc_tls_config, &GRPC_TLS, &mut wrong);
    ring(config, &mut wrong);
    ingester(config, &mut wrong);
    wal(config, &mut wrong);
    wrong.extend(limits(config));
    wrong
}

fn general(config: &Config, wrong: &mut Vec<Wrong>) {
    if config.target.contains(&Target::All) && config.target.len() > 1 {
        wrong.push(("target", format!("all stands alone; without it, name some of: {}", Target::list())));
    }
    if config.target == [Target::Querier] {
        wrong.push(("target", "querier needs an object store, which is not built yet; use all".to_string()));
    }
    if config.runs(Target::Distributor) && !config.runs(Target::Ingester) && config.common.ring.instances.is_empty() {
        let text = "distributor needs the ingesters: set common.ring.instances to a list of {id, addr}";
        wrong.push(("target", text.to_string()));
    }
    if let Err(error) = Tenant::new(&config.no_auth_tenant) {
        wrong.push(("no_auth_tenant", error.to_string()));
    }
    let server = &config.server;
    let same_address = server.http_listen_address == server.grpc_listen_address;
    if same_address && server.http_listen_port == server.grpc_listen_port && server.http_listen_port != 0 {
        let port = server.http_listen_port;
        wrong.push(("server.grpc_listen_port", format!("{port} is the HTTP listener's port too; choose another")));
    }
    for (path, address) in [
        ("server.http_listen_address", &server.http_listen_address),
        ("server.grpc_listen_address", &server.grpc_listen_address),
    ] {
        if address.contains([' ', '/']) || (address.matches(':').count() == 1) {
            wrong.push((path, format!("{address:?} is not a host name or an address; the port is a key of its own")));
        }
    }
    for (path, duration) in [
        ("server.http_server_read_timeout", server.http_server_read_timeout),
        ("server.http_server_write_timeout", server.http_server_write_timeout),
        ("server.http_server_idle_timeout", server.http_server_idle_timeout),
    ] {
        if duration.is_zero() {
            wrong.push((path, "0s would let a slow client hold a connection for ever; set a time".to_string()));
        }
    }
    for (path, size) in [
        ("distributor.max_recv_msg_size", config.distributor.max_recv_msg_size),
        ("distributor.max_decompressed_size", config.distributor.max_decompressed_size),
        ("server.grpc_server_max_recv_msg_size", server.grpc_server_max_recv_msg_size),
        ("server.grpc_server_max_send_msg_size", server.grpc_server_max_send_msg_size),
    ] {
        between(path, size as u64, 1024, 4 * GIB, wrong);
    }
    if config.common.path_prefix.is_empty() {
        wrong.push(("common.path_prefix", "is empty; name the data directory".to_string()));
    }
}

fn between(path: &'static str, bytes: u64, least: u64, most: u64, wrong: &mut Vec<Wrong>) {
    if !(least..=most).contains(&bytes) {
        let (least, most) = (show_bytes(least), show_bytes(most));
        wrong.push((path, format!("{} is not between {least} and {most}", show_bytes(bytes))));
    }
}

struct TlsPaths {
    cert: &'static str,
    key: &'static str,
    ca: &'static str,
    auth: &'static str,
}

const HTTP_TLS: TlsPaths = TlsPaths {
    cert: "server.http_tls_config.cert_file",
    key: "server.http_tls_config.key_file",
    ca: "server.http_tls_config.client_ca_file",
    auth: "server.http_tls_config.client_auth_type",
};

const GRPC_TLS: TlsPaths = TlsPaths {
    cert: "server.grpc_tls_config.cert_file",
    key: "server.grpc_tls_config.key_file",
    ca: "server.grpc_tls_config.client_ca_file",
    auth: "server.grpc_tls_config.client_auth_type",
};

/// Half a TLS configuration would be a listener that is less protected than it looks.
fn tls(tls: &TlsConfig, paths: &TlsPaths, wrong: &mut Vec<Wrong>) {
    let (cert, key, ca) = (!tls.cert_file.is_empty(), !tls.key_file.is_empty(), !tls.client_ca_file.is_empty());
    let auth = tls.client_auth_type != ClientAuth::None;
    if cert && !key {
        wrong.push((paths.key, "is empty, but cert_file is set; TLS needs both".to_string()));
    }
    if key && !cert {
        wrong.push((paths.cert, "is empty, but key_file is set; TLS needs both".to_string()));
    }
    if auth && !ca {
        wrong
            .push((paths.ca, "is empty, but client_auth_type asks for certificates; name the authorities".to_string()));
    }
    if ca && !auth {
        wrong.push((
            paths.auth,
            "asks for no certificates, but client_ca_file is set; set it or remove that".to_string(),
        ));
    }
    if (ca || auth) && !cert && !key {
        wrong.push((paths.cert, "is empty: client certificates need TLS".to_string()));
    }
}

fn ring(config: &Config, wrong: &mut Vec<Wrong>) {
    let ring = &config.common.ring;
    let members = ring.instances.len().max(1);
    let factor = config.common.replication_factor;
    if factor == 0 {
        wrong.push(("common.replication_factor", "0 would store nothing; it is 1 or more".to_string()));
    }
    if factor > members {
        let text =
            format!("{factor} copies need {factor} ingesters, and the ring has {members}; see common.ring.instances");
        wrong.push(("common.replication_factor", text));
    }
    if !(1..=4096).contains(&ring.num_tokens) {
        wrong.push(("common.ring.num_tokens", format!("{} is not between 1 and 4096", ring.num_tokens)));
    }
    let mut ids = BTreeSet::new();
    for instance in &ring.instances {
        let port = instance.addr.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if instance.id.is_empty() {
            wrong.push(("common.ring.instances", format!("the member at {:?} has no id", instance.addr)));
        } else if !ids.insert(&instance.id) {
            wrong.push(("common.ring.instances", format!("the id {:?} is given twice", instance.id)));
        }
        let is_authority = instance.addr.parse::<Authority>().is_ok();
        if !is_authority || !port.is_some_and(|(host, port)| !host.is_empty() && port != 0) {
            let text = format!("{:?}: the address {:?} is not host:port", instance.id, instance.addr);
            wrong.push(("common.ring.instances", text));
        }
    }
}

fn ingester(config: &Config, wrong: &mut Vec<Wrong>) {
    let ingester = &config.ingester;
    between("ingester.chunk_block_size", ingester.chunk_block_size as u64, 1024, GIB, wrong);
    between("ingester.chunk_target_size", ingester.chunk_target_size as u64, 1024, GIB, wrong);
    if ingester.max_chunk_age.is_zero() {
        wrong.push((
            "ingester.max_chunk_age",
            "0s would close every chunk at once and reject unordered entries".to_string(),
        ));
    }
    if ingester.chunk_idle_period.is_zero() {
        wrong.push(("ingester.chunk_idle_period", "0s would close every chunk at once".to_string()));
    }
    if ingester.sync_min_utilization > 1.0 {
        let text = format!("{} is not between 0 and 1", ingester.sync_min_utilization);
        wrong.push(("ingester.sync_min_utilization", text));
    }
    if ingester.scrub.interval < Duration::from_secs(1) {
        let text =
            format!("{} is shorter than 1s; to switch it off, set rate: 0", show_duration(ingester.scrub.interval));
        wrong.push(("ingester.scrub.interval", text));
    }
    if ingester.memory_budget != 0 {
        between("ingester.memory_budget", ingester.memory_budget, 64 * MIB, 1 << 50, wrong);
    }
}

fn wal(config: &Config, wrong: &mut Vec<Wrong>) {
    let wal = &config.ingester.wal;
    if !wal.enabled {
        let text = "false is not possible: a push is answered when it is in the log; remove the key".to_string();
        wrong.push(("ingester.wal.enabled", text));
    }
    between("ingester.wal.segment_size", wal.segment_size, MIB, GIB, wrong);
    between("ingester.wal.max_size", wal.max_size, 4 * MIB, 1 << 50, wrong);
    between("ingester.wal.queue_size", wal.queue_size as u64, MIB, 4 * GIB, wrong);
    let (least, most) = (Duration::from_millis(1), Duration::from_secs(60));
    if !(least..=most).contains(&wal.sync_interval) {
        let text = format!("{} is not between 1ms and 1m", show_duration(wal.sync_interval));
        wrong.push(("ingester.wal.sync_interval", text));
    }
}

/// What is wrong with `limits_config`, or with a tenant's limits in its place.
pub(super) fn limits(config: &Config) -> Vec<Wrong> {
    let limits = &config.limits;
    let mut wrong = Vec::new();
    if limits.ingestion_burst_size <= 0.0 || limits.ingestion_rate <= 0.0 {
        let text = "a rate and a burst of 0 would reject every push; set both above 0".to_string();
        wrong.push(("limits_config.ingestion_rate_mb", text));
    }
    if limits.max_line_size > 0 && limits.max_line_size_truncate_identifier.len() > limits.max_line_size {
        let text = format!("is longer than max_line_size ({})", show_bytes(limits.max_line_size as u64));
        wrong.push(("limits_config.max_line_size_truncate_identifier", text));
    }
    for (path, count) in [
        ("limits_config.max_label_names_per_series", limits.max_label_names_per_series),
        ("limits_config.max_label_name_length", limits.max_label_name_length),
        ("limits_config.max_label_value_length", limits.max_label_value_length),
    ] {
        if count == 0 {
            wrong.push((path, "0 would reject every stream".to_string()));
        }
    }
    wrong
}
