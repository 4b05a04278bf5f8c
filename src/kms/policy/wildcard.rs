//! Patterns with `*` (any characters) and `?` (one character).

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
    /// Anything else.
    Glob(Vec<char>),
}

impl Wildcard {
    /// Compiles `pattern`. Where case does not count, it does not for ASCII letters only.
    pub fn new(pattern: &str, ignore_case: bool) -> Self {
        let is_plain = |text: &str| !text.contains(['*', '?']);
        let form = match pattern.strip_suffix('*') {
            Some("") => Form::Any,
            Some(prefix) if is_plain(prefix) => Form::Prefix(prefix.to_owned()),
            None if is_plain(pattern) => Form::Literal(pattern.to_owned()),
            Some(_) | None => Form::Glob(folded(pattern, ignore_case)),
        };
        Self { form, ignore_case }
    }

    /// A text to be compared as it stands, `*` and `?` included.
    pub fn literal(text: &str, ignore_case: bool) -> Self {
        Self { form: Form::Literal(text.to_owned()), ignore_case }
    }

    /// Whether `text` matches as a whole. Takes at most |pattern| x |text| steps.
    pub fn matches(&self, text: &str) -> bool {
        match &self.form {
            Form::Any => true,
            Form::Literal(literal) => self.same(literal.as_bytes(), text.as_bytes()),
            Form::Prefix(prefix) => {
                let start = text.as_bytes().get(..prefix.len());
                start.is_some_and(|start| self.same(prefix.as_bytes(), start))
            }
            Form::Glob(pattern) => glob(pattern, &folded(text, self.ignore_case)),
        }
    }

    fn same(&self, a: &[u8], b: &[u8]) -> bool {
        if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
    }
}

fn folded(text: &str, ignore_case: bool) -> Vec<char> {
    text.chars().map(|c| if ignore_case { c.to_ascii_lowercase() } else { c }).collect()
}

/// Matches greedily and returns to the last `*` on a mismatch.
fn glob(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut resume: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                resume = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, from)) = resume else { return false };
                resume = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
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
        fn matching_is_what_the_definition_says(pattern in "[ab*?]{0,8}|[ab]{0,3}[*]", text in "[ab]{0,10}") {
            let expected = by_definition(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>());
            prop_assert_eq!(Wildcard::new(&pattern, false).matches(&text), expected);
        }
    }

    #[test]
    fn a_literal_takes_its_stars_as_they_stand() {
        assert!(Wildcard::literal("a*?", false).matches("a*?"));
        assert!(!Wildcard::literal("a*?", false).matches("abc"));
    }

    #[test]
    fn case_counts_only_where_asked() {
        assert!(Wildcard::new("kms:generatedatakey*", true).matches("kms:GenerateDataKeyWithoutPlaintext"));
        assert!(!Wildcard::new("kms:generatedatakey*", false).matches("kms:GenerateDataKey"));
        assert!(Wildcard::new("KMS:Decrypt", true).matches("kms:Decrypt"));
        assert!(!Wildcard::new("kms:Decrypt", false).matches("kms:decrypt"));
    }
}
