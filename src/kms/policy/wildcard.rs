//! Patterns with `*` (any characters) and `?` (one character).
//!
//! Called on every evaluation, with texts that callers choose: a match takes time linear in the text.

use super::document::PolicyError;

/// Longest pattern, in bytes: as long as a reference to a key.
pub const MAX_PATTERN_BYTES: usize = 2048;
/// What stands for `*` and `?` in a pattern being compiled: noncharacters, so that a star that came out of a
/// variable's value is an ordinary character.
pub(super) const STAR: char = '\u{10fffe}';
/// See [`STAR`].
pub(super) const ONE: char = '\u{10ffff}';
/// Most characters between two `*` if a `?` is among them: a machine word.
const MAX_LOOSE: usize = 64;

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard {
    form: Form,
    ignore_case: bool,
}

/// The simple forms, which nearly all patterns have, need no search.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// `*`
    Any,
    /// No wildcard.
    Literal(String),
    /// One `*`, at the end.
    Prefix(String),
    /// No `*`, but a `?`.
    Loose(Vec<char>),
    /// Anything else, cut at its `*`.
    Glob { head: Vec<char>, middle: Vec<Piece>, tail: Vec<char> },
}

/// What stands between two `*`: found where it comes first, which leaves the most for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// Without `?`.
    Literal(String),
    /// With `?`.
    Loose(Masks),
}

/// A search for a run with `?` that reads the text once (Shift-And): bit `i` of a character's mask is set where the
/// character may stand at place `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Masks {
    any: u64,
    of: Vec<(char, u64)>,
    last: u64,
}

impl Wildcard {
    /// Compiles `pattern`. Where case does not count, it does not for ASCII letters only.
    pub fn new(pattern: &str, ignore_case: bool) -> Result<Self, PolicyError> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(PolicyError::Syntax("a pattern is too long"));
        }
        if pattern.contains([STAR, ONE]) {
            return Err(PolicyError::Syntax("a pattern holds a noncharacter"));
        }
        Self::marked(&mark(pattern), ignore_case)
    }

    /// Compiles a pattern whose wildcards are [`STAR`] and [`ONE`].
    pub(super) fn marked(pattern: &str, ignore_case: bool) -> Result<Self, PolicyError> {
        let is_plain = |text: &str| !text.contains([STAR, ONE]);
        let form = match pattern.strip_suffix(STAR) {
            Some("") => Form::Any,
            Some(prefix) if is_plain(prefix) => Form::Prefix(prefix.to_owned()),
            None if is_plain(pattern) => Form::Literal(pattern.to_owned()),
            Some(_) | None => Form::cut(&folded(pattern, ignore_case))?,
        };
        Ok(Self { form, ignore_case })
    }

    /// A text to be compared as it stands, `*` and `?` included.
    pub fn literal(text: &str, ignore_case: bool) -> Self {
        Self { form: Form::Literal(text.to_owned()), ignore_case }
    }

    /// Whether `text` matches as a whole.
    pub fn matches(&self, text: &str) -> bool {
        match &self.form {
            Form::Any => true,
            Form::Literal(literal) => self.same(literal.as_bytes(), text.as_bytes()),
            Form::Prefix(prefix) => {
                let start = text.as_bytes().get(..prefix.len());
                start.is_some_and(|start| self.same(prefix.as_bytes(), start))
            }
            Form::Loose(pattern) => {
                after(pattern, &folded(text, self.ignore_case)).is_some_and(str::is_empty)
            }
            Form::Glob { head, middle, tail } => glob(head, middle, tail, &folded(text, self.ignore_case)),
        }
    }

    fn same(&self, a: &[u8], b: &[u8]) -> bool {
        if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
    }
}

impl Form {
    fn cut(pattern: &str) -> Result<Self, PolicyError> {
        let Some((head, rest)) = pattern.split_once(STAR) else {
            return Ok(Self::Loose(pattern.chars().collect()));
        };
        let (middle, tail) = rest.rsplit_once(STAR).unwrap_or(("", rest));
        let middle = middle.split(STAR).filter(|piece| !piece.is_empty()).map(Piece::compile);
        let (head, tail) = (head.chars().collect(), tail.chars().collect());
        Ok(Self::Glob { head, middle: middle.collect::<Result<_, _>>()?, tail })
    }
}

impl Piece {
    fn compile(text: &str) -> Result<Self, PolicyError> {
        if !text.contains(ONE) {
            return Ok(Self::Literal(text.to_owned()));
        }
        let length = text.chars().count();
        if length > MAX_LOOSE {
            return Err(PolicyError::Syntax("a pattern has too long a part with ? between two *"));
        }
        let mut masks = Masks { any: 0, of: Vec::new(), last: 1 << (length - 1) };
        for (place, c) in text.chars().enumerate() {
            match masks.of.iter_mut().find(|(known, _)| *known == c) {
                _ if c == ONE => masks.any |= 1 << place,
                Some((_, mask)) => *mask |= 1 << place,
                None => masks.of.push((c, 1 << place)),
            }
        }
        Ok(Self::Loose(masks))
    }

    /// What follows the first place where it stands.
    fn after_first<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Literal(literal) => text.find(literal.as_str()).map(|at| &text[at + literal.len()..]),
            Self::Loose(masks) => {
                let mut reached = 0u64;
                let end = text.char_indices().find(|(_, c)| {
                    let of = masks.of.iter().find(|(known, _)| known == c).map_or(0, |(_, mask)| *mask);
                    reached = (reached << 1 | 1) & (of | masks.any);
                    reached & masks.last != 0
                });
                end.map(|(at, c)| &text[at + c.len_utf8()..])
            }
        }
    }
}

/// The pattern with its wildcards marked.
pub(super) fn mark(pattern: &str) -> std::borrow::Cow<'_, str> {
    if !pattern.contains(['*', '?']) {
        return pattern.into();
    }
    let marked = |c| match c {
        '*' => STAR,
        '?' => ONE,
        c => c,
    };
    pattern.chars().map(marked).collect::<String>().into()
}

fn folded(text: &str, ignore_case: bool) -> std::borrow::Cow<'_, str> {
    if ignore_case { text.to_ascii_lowercase().into() } else { text.into() }
}

/// What follows `pattern` at the start of `text`.
fn after<'a>(pattern: &[char], text: &'a str) -> Option<&'a str> {
    let mut rest = text.chars();
    let fits = pattern.iter().all(|p| rest.next().is_some_and(|c| *p == ONE || *p == c));
    fits.then_some(rest.as_str())
}

/// What stands before `pattern` at the end of `text`.
fn before<'a>(pattern: &[char], text: &'a str) -> Option<&'a str> {
    let mut rest = text.chars();
    let fits = pattern.iter().rev().all(|p| rest.next_back().is_some_and(|c| *p == ONE || *p == c));
    fits.then_some(rest.as_str())
}

fn glob(head: &[char], middle: &[Piece], tail: &[char], text: &str) -> bool {
    let rest = after(head, text).and_then(|rest| before(tail, rest));
    rest.is_some_and(|rest| middle.iter().try_fold(rest, |rest, piece| piece.after_first(rest)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, written as a recursion.
    fn by_definition(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|skip| by_definition(rest, &text[skip..])),
            Some((c, rest)) => {
                text.split_first().is_some_and(|(t, more)| (*c == '?' || c == t) && by_definition(rest, more))
            }
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_the_definition_says(pattern in "[abé*?]{0,8}|[ab]{0,3}[*]|[*][ab?]{1,4}[*]", text in "[abé]{0,10}") {
            let expected = by_definition(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>());
            prop_assert_eq!(Wildcard::new(&pattern, false).unwrap().matches(&text), expected);
        }
    }

    #[test]
    fn a_literal_takes_its_stars_as_they_stand() {
        assert!(Wildcard::literal("a*?", false).matches("a*?"));
        assert!(!Wildcard::literal("a*?", false).matches("abc"));
    }

    #[test]
    fn case_counts_only_where_asked() {
        assert!(
            Wildcard::new("kms:generatedatakey*", true)
                .unwrap()
                .matches("kms:GenerateDataKeyWithoutPlaintext")
        );
        assert!(!Wildcard::new("kms:generatedatakey*", false).unwrap().matches("kms:GenerateDataKey"));
        assert!(Wildcard::new("KMS:Decrypt", true).unwrap().matches("kms:Decrypt"));
        assert!(!Wildcard::new("kms:Decrypt", false).unwrap().matches("kms:decrypt"));
    }

    #[test]
    fn what_would_take_long_to_match_is_refused() {
        assert!(Wildcard::new(&"*a".repeat(MAX_PATTERN_BYTES / 2), false).is_ok());
        assert!(Wildcard::new(&"*a".repeat(MAX_PATTERN_BYTES / 2 + 1), false).is_err());
        let loose = |length: usize| format!("*{}?*", "a".repeat(length - 1));
        let longest = Wildcard::new(&loose(MAX_LOOSE), false).unwrap();
        assert!(longest.matches(&"a".repeat(MAX_LOOSE + 7)));
        assert!(!longest.matches(&"a".repeat(MAX_LOOSE - 1)));
        assert!(Wildcard::new(&loose(MAX_LOOSE + 1), false).is_err());
    }
}
