//! TagResource, UntagResource, ListResourceTags.

use std::collections::BTreeSet;

use crate::api::{
    ErrorCode, KmsError, ListResourceTagsRequest, ListResourceTagsResponse, Tag, TagResourceRequest,
    UntagResourceRequest,
};

use super::super::authorise::{Allowed, Demand};
use super::super::lifecycle::{self, Need};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::{plain_demand, refuse_managed};
use super::page::{Size, page};
use super::{Perform, turn};

/// Most tags of a key.
const MAX_TAGS: usize = 50;
const RESERVED: &str = "aws:";
const PAGE: Size = Size { default: 50, max: 50 };

/// Refuses names that are reserved or come twice, and more tags than a key may have together with `present`.
pub(in super::super) fn check_tags(new: &[Tag], present: &[Tag]) -> Result<(), KmsError> {
    let bad = |message: &str| Err(KmsError::new(ErrorCode::TagException, message));
    let names: BTreeSet<&str> = new.iter().map(|tag| tag.tag_key.as_str()).collect();
    if names.iter().any(|name| name.to_ascii_lowercase().starts_with(RESERVED)) {
        return bad("aws: prefixed tag key names are not allowed for external use.");
    }
    if names.len() < new.len() {
        return bad("Duplicate tag keys");
    }
    let kept = present.iter().filter(|tag| !names.contains(tag.tag_key.as_str())).count();
    if names.len() + kept > MAX_TAGS {
        return bad("Too many tags");
    }
    Ok(())
}

impl Perform for TagResourceRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:TagResource", notes)?;
        for demand in &mut demands {
            demand.request_tags = &self.tags;
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_tags(&self.tags, &key.record.tags)?;
        refuse_managed(key)?;
        lifecycle::check(Need::Change, key.record.state, &key.record.arn)?;
        call.kms.update_key(turn(call)?, key, |record| {
            for tag in self.tags {
                match record.tags.iter_mut().find(|old| old.tag_key == tag.tag_key) {
                    Some(old) => *old = tag,
                    None => record.tags.push(tag),
                }
            }
        })?;
        Ok(Answer::empty())
    }
}

impl Perform for UntagResourceRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:UntagResource", notes)?;
        for demand in &mut demands {
            demand.removed_tags = &self.tag_keys;
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        refuse_managed(key)?;
        lifecycle::check(Need::Change, key.record.state, &key.record.arn)?;
        call.kms.update_key(turn(call)?, key, |record| {
            record.tags.retain(|tag| !self.tag_keys.contains(&tag.tag_key));
        })?;
        Ok(Answer::empty())
    }
}

impl Perform for ListResourceTagsRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:ListResourceTags", notes)
    }

    fn perform(self, _: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let mut tags = allowed.key()?.record.tags.clone();
        tags.sort_by(|a, b| a.tag_key.cmp(&b.tag_key));
        let page =
            page(tags.into_iter(), |tag| tag.tag_key.clone(), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        Answer::of(
            &ListResourceTagsResponse { tags: page.items, next_marker: page.next_marker, truncated },
            0,
        )
    }
}
