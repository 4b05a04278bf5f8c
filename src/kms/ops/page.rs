//! Pages of a list: limit, marker, and whether there is more.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::{ErrorCode, KmsError};

/// A page and the marker of the next one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next_marker: Option<String>,
}

impl<T> Page<T> {
    pub(super) fn truncated(&self) -> bool {
        self.next_marker.is_some()
    }
}

/// How many entries of a list a page holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) default: usize,
    pub(super) max: usize,
}

/// The page of `items` (ordered by name) after `marker`.
pub(super) fn page<T>(
    items: impl Iterator<Item = T>,
    name: impl Fn(&T) -> String,
    size: Size,
    limit: Option<i64>,
    marker: Option<&str>,
) -> Result<Page<T>, KmsError> {
    let after = marker.map(decode).transpose()?;
    let limit = match limit {
        None => size.default,
        Some(wanted) => {
            usize::try_from(wanted).ok().filter(|n| *n <= size.max).ok_or_else(|| over(wanted, size))?
        }
    };
    let mut rest = items.filter(|item| after.as_ref().is_none_or(|after| name(item) > *after));
    let items: Vec<T> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    let next_marker = items.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(name(last)));
    Ok(Page { items, next_marker })
}

/// What a caller is told who wants more on a page than this list gives; the model's own bound is that of all lists.
fn over(wanted: i64, size: Size) -> KmsError {
    let message = format!(
        "1 validation error detected: Value '{wanted}' at 'limit' failed to satisfy constraint: Member must have \
         value less than or equal to {}",
        size.max
    );
    KmsError::new(ErrorCode::ValidationException, message)
}

fn decode(marker: &str) -> Result<String, KmsError> {
    let bytes = URL_SAFE_NO_PAD.decode(marker).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| {
        KmsError::new(ErrorCode::InvalidMarkerException, format!("Could not deserialize marker '{marker}'"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { default: 2, max: 3 };

    fn read(limit: Option<i64>, marker: Option<&str>) -> Page<u8> {
        page(b'a'..=b'e', |item| char::from(*item).to_string(), SIZE, limit, marker).unwrap()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let mut seen = Vec::new();
        let mut marker = None;
        loop {
            let next = read(None, marker.as_deref());
            assert!(next.items.len() <= 2);
            assert_eq!(next.truncated(), next.next_marker.is_some());
            seen.extend(next.items);
            marker = next.next_marker;
            if marker.is_none() {
                break;
            }
        }
        assert_eq!(seen, b"abcde");
    }

    #[test]
    fn the_last_page_has_no_marker_even_when_it_is_full() {
        assert_eq!(read(Some(3), Some("Yg")).items, b"cde");
        assert_eq!(read(Some(3), Some("Yg")).next_marker, None);
        let error = page(b'a'..=b'e', ToString::to_string, SIZE, Some(4), None).unwrap_err();
        assert_eq!(error.code, ErrorCode::ValidationException);
        assert!(error.message.contains("'4' at 'limit'") && error.message.ends_with("equal to 3"));
    }

    #[test]
    fn a_marker_that_is_none_of_ours_is_refused() {
        let error = page(0..3_u8, ToString::to_string, SIZE, None, Some("%%%")).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidMarkerException);
    }
}
