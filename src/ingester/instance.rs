use super::index::Index;
use super::memory::Meter;
use super::{State, Stream};
use crate::model::{LabelSet, Matcher, Tenant};
use crate::wal::StreamLog;
use ahash::AHashMap;
use parking_lot::RwLock;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Everything of one tenant.
pub(super) struct Instance {
    pub tenant: Tenant,
    /// Bytes of its sealed blocks on the disk.
    pub blocks: Meter,
    /// The stream that takes new entries, by label text. A stream's identity is this text, never its hash.
    streams: RwLock<AHashMap<Box<str>, Arc<Stream>>>,
    /// Streams with applied lines, for reads.
    index: RwLock<Index>,
}

/// Why there is no stream for these labels.
pub(super) enum Refused {
    /// The tenant has as many streams as its limit allows.
    StreamLimit,
    /// Streams and blocks take as much memory as they may.
    Memory,
}

impl Instance {
    pub fn new(tenant: Tenant) -> Self {
        Self { tenant, blocks: Meter::default(), streams: RwLock::default(), index: RwLock::default() }
    }

    /// The stream with these labels, made if need be, with one more admitted push. The caller gives it back with
    /// [`Instance::release`] when the push fails; `apply` ends it otherwise.
    pub fn reserve(&self, labels: &Arc<LabelSet>, limit: usize, state: &State) -> Result<Arc<Stream>, Refused> {
        if let Some(stream) = self.streams.read().get(labels.text()) {
            // Counted under the map's lock, so `release` cannot drop the stream in between.
            stream.admit();
            return Ok(stream.clone());
        }
        let mut streams = self.streams.write();
        if let Some(stream) = streams.get(labels.text()) {
            stream.admit();
            return Ok(stream.clone());
        }
        if limit > 0 && streams.len() >= limit {
            return Err(Refused::StreamLimit);
        }
        if !state.takes_streams() {
            return Err(Refused::Memory);
        }
        let id = state.next_stream_id.fetch_add(1, Ordering::SeqCst);
        let log = StreamLog::new(id, self.tenant.clone(), labels.clone(), 0);
        let stream = Arc::new(Stream::new(Arc::new(log), &state.metadata, &self.blocks));
        stream.admit();
        streams.insert(labels.text().into(), stream.clone());
        Ok(stream)
    }

    /// A push to the stream has failed: forgets a stream that never had a line.
    pub fn release(&self, stream: &Arc<Stream>) {
        let mut streams = self.streams.write();
        if stream.finish() == 0 && !stream.is_visible() {
            let same = streams.get(stream.labels().text()).is_some_and(|s| Arc::ptr_eq(s, stream));
            if same {
                streams.remove(stream.labels().text());
            }
        }
    }

    /// Takes in streams that the log defines: new entries of their labels go to them, to the newest of equal ones.
    pub fn recovered(&self, recovered: Vec<(Box<str>, Arc<Stream>)>) {
        let mut streams = self.streams.write();
        streams.reserve(recovered.len());
        for (text, stream) in recovered {
            match streams.entry(text) {
                Entry::Occupied(known) if known.get().log.id > stream.log.id => {}
                Entry::Occupied(mut known) => drop(known.insert(stream)),
                Entry::Vacant(new) => drop(new.insert(stream)),
            }
        }
    }

    /// Shows a stream to reads: it has its first line.
    pub fn show(&self, stream: &Arc<Stream>) {
        self.index.write().add(stream);
    }

    /// Shows many.
    pub fn show_all(&self, streams: &[Arc<Stream>]) {
        let mut index = self.index.write();
        streams.iter().for_each(|stream| index.add(stream));
    }

    pub fn matching(&self, matchers: &[Matcher]) -> Vec<Arc<Stream>> {
        self.index.read().matching(matchers)
    }

    /// All streams with lines.
    pub fn shown(&self) -> Vec<Arc<Stream>> {
        self.index.read().streams().to_vec()
    }
}
