//! Patterns with `*` (any characters) and `?` (one character).

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard {
    pattern: Vec<char>,
    /// Without wildcards, a comparison will do.
    literal: Option<String>,
    ignore_case: bool,
}

impl Wildcard {
    /// Compiles `pattern`; actions are compared without regard to case.
    pub fn new(pattern: &str, ignore_case: bool) -> Self {
        let pattern = if ignore_case { pattern.to_lowercase() } else { pattern.to_owned() };
        let plain = !pattern.contains(['*', '?']);
        Self { pattern: pattern.chars().collect(), literal: plain.then_some(pattern), ignore_case }
    }

    /// A text to be compared as it stands, `*` and `?` included.
    pub fn literal(text: &str, ignore_case: bool) -> Self {
        let text = if ignore_case { text.to_lowercase() } else { text.to_owned() };
        Self { pattern: Vec::new(), literal: Some(text), ignore_case }
    }

    /// Whether it matches everything.
    pub fn is_any(&self) -> bool {
        self.pattern == ['*']
    }

    /// Whether `text` matches as a whole. Takes at most |pattern| x |text| steps.
    pub fn matches(&self, text: &str) -> bool {
        if self.is_any() {
            return true;
        }
        if let Some(literal) = &self.literal {
            let same = literal == text;
            return same
                || (self.ignore_case && literal.chars().eq(text.chars().flat_map(char::to_lowercase)));
        }
        if self.ignore_case {
            return glob(&self.pattern, &text.chars().flat_map(char::to_lowercase).collect::<Vec<_>>());
        }
        glob(&self.pattern, &text.chars().collect::<Vec<_>>())
    }
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
        fn matching_is_what_the_definition_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let expected = by_definition(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>());
            prop_assert_eq!(Wildcard::new(&pattern, false).matches(&text), expected);
        }
    }

    #[test]
    fn case_counts_only_where_asked() {
        assert!(Wildcard::new("kms:generatedatakey*", true).matches("kms:GenerateDataKeyWithoutPlaintext"));
        assert!(!Wildcard::new("kms:generatedatakey*", false).matches("kms:GenerateDataKey"));
        assert!(Wildcard::new("KMS:Decrypt", true).matches("kms:Decrypt"));
        assert!(!Wildcard::new("kms:Decrypt", false).matches("kms:decrypt"));
    }
}
