//! What a power cut may leave of one file, for `cut_tests`.
//!
//! Metadata (length, holes) as of some moment since the last sync, and each page, on its own, as of some moment since
//! then, as far as the metadata allows. A page is written as a whole. A length that a write made may come later than
//! what was done to the metadata after it, or in part: it follows the pages.
#![cfg(test)]

use super::lower::trace::Change;

pub(super) const PAGE: usize = 4096;

/// A lower file at a moment.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Image(pub(super) Vec<u8>);

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(at, data) => {
                let end = *at as usize + data.len();
                self.0.resize(self.0.len().max(end), 0);
                self.0[*at as usize..end].copy_from_slice(data);
            }
            Change::Length(len) => self.0.resize(*len as usize, 0),
            Change::Punch(at, len) => {
                let end = ((at + len) as usize).min(self.0.len());
                self.0[(*at as usize).min(end)..end].fill(0);
            }
            Change::Sync => {}
        }
    }

    fn page(&self, page: usize) -> &[u8] {
        let end = ((page + 1) * PAGE).min(self.0.len());
        &self.0[(page * PAGE).min(end)..end]
    }
}

/// Whether `change` takes what page `page` of a file of `len` bytes holds, by way of the metadata.
fn takes(change: &Change, page: usize, len: usize) -> bool {
    match change {
        Change::Length(to) => (*to as usize) < len && (page + 1) * PAGE > *to as usize,
        Change::Punch(at, punched) => {
            (page * PAGE) < (at + punched) as usize && (page + 1) * PAGE > *at as usize
        }
        Change::Write(..) | Change::Sync => false,
    }
}

/// All that one file may be after a cut: the states since its last sync.
pub(super) struct Choices {
    pub(super) states: Vec<Image>,
    pending: Vec<Change>,
    /// Pages that differ between the states.
    pages: Vec<usize>,
    /// For each state, the lengths that may stand with its metadata.
    lengths: Vec<Vec<usize>>,
}

impl Choices {
    pub(super) fn new(base: &Image, changes: &[Change], lengths: Lengths) -> Self {
        let synced = changes.iter().rposition(|c| matches!(c, Change::Sync)).map_or(0, |at| at + 1);
        let mut now = base.clone();
        changes[..synced].iter().for_each(|change| now.apply(change));
        let mut states = vec![now.clone()];
        for change in &changes[synced..] {
            now.apply(change);
            states.push(now.clone());
        }
        let longest = states.iter().map(|s| s.0.len()).max().unwrap_or(0).div_ceil(PAGE);
        let differs = |page: &usize| states.iter().any(|state| state.page(*page) != states[0].page(*page));
        let pages = (0..longest).filter(differs).collect();
        let pending = changes[synced..].to_vec();
        let lengths_at = |meta| lengths_at(&states, &pending, meta, lengths);
        let lengths = (0..states.len()).map(lengths_at).collect();
        Self { states, pending, pages, lengths }
    }

    /// The state in which the metadata is that of moment `meta`, and `pick(n)` of `n` moments is chosen for each page.
    pub(super) fn choose(&self, meta: usize, mut pick: impl FnMut(usize) -> usize) -> Image {
        let mut out = self.states[meta].clone();
        let len = out.0.len();
        for page in &self.pages {
            let took = |at: &usize| takes(&self.pending[*at], *page, self.states[*at].0.len());
            let low = (0..meta).rev().find(took).map_or(0, |at| at + 1);
            let high = (meta..self.pending.len()).find(took).unwrap_or(self.pending.len());
            let mut versions: Vec<&[u8]> =
                self.states[low..=high].iter().map(|state| state.page(*page)).collect();
            versions.dedup();
            let from = versions[pick(versions.len())].to_vec();
            let place = (*page * PAGE).min(len)..((*page + 1) * PAGE).min(len);
            let mut bytes = from;
            bytes.resize(place.len(), 0);
            out.0[place].copy_from_slice(&bytes);
        }
        let lengths = &self.lengths[meta];
        out.0.resize(lengths[pick(lengths.len())], 0);
        out
    }
}

/// Which lengths may stand with the metadata of a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lengths {
    /// The length does not change, as that of the log: its space is taken before.
    Fixed,
    /// Each that a write has made since the length was last set or made durable.
    OfWrites,
    /// Those between, at the edge of a page, too.
    AtEdges,
}

fn lengths_at(states: &[Image], pending: &[Change], meta: usize, which: Lengths) -> Vec<usize> {
    let set = pending[..meta].iter().rposition(|change| matches!(change, Change::Length(_)));
    let since = set.map_or(0, |at| at + 1);
    let mut lengths: Vec<usize> = states[since..=meta].iter().map(|s| s.0.len()).collect();
    let (least, most) = (lengths[0], states[meta].0.len());
    match which {
        Lengths::Fixed => return vec![most],
        Lengths::OfWrites => {}
        Lengths::AtEdges => lengths.extend((least.next_multiple_of(PAGE)..most).step_by(PAGE)),
    }
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}
