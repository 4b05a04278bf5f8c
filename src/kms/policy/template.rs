//! Texts of policies that may hold variables, `${aws:username}` or `${aws:PrincipalTag/team, 'none'}`, and the
//! escapes `${*}`, `${?}` and `${$}`.
//!
//! Compiled by `document` and `condition`. What a variable brings is taken as it stands: no wildcard, no variable.

use super::document::PolicyError;
use super::facts::{Facts, Name};
use super::wildcard::{MAX_PATTERN_BYTES, ONE, STAR, Wildcard, mark};

/// Most variables in a text.
const MAX_VARIABLES: usize = 32;

/// How a text is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    /// Whether `*` and `?` are wildcards.
    pub(super) wild: bool,
    /// Whether case does not count.
    pub(super) ignore_case: bool,
    /// Whether variables are expanded; those of policies of 2008 are plain text.
    pub(super) variables: bool,
}

/// A compiled text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Text {
    /// Without variables: nothing is to be done when it is held against a call.
    Fixed(Wildcard),
    /// With variables.
    Template { parts: Vec<Part>, ignore_case: bool },
}

/// A part of a text with variables.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// Wildcards marked.
    Plain(String),
    /// A variable, and what stands for it where it is absent.
    Variable { name: Name, default: Option<String> },
}

impl Text {
    pub(super) fn compile(text: &str, style: Style) -> Result<Self, PolicyError> {
        let Style { wild, ignore_case, variables } = style;
        if !variables || !text.contains("${") {
            return Ok(Self::Fixed(if wild {
                Wildcard::new(text, ignore_case)?
            } else {
                Wildcard::literal(text, ignore_case)
            }));
        }
        let parts = parts(text, wild)?;
        // Escapes alone need no facts.
        if let [Part::Plain(plain)] = parts.as_slice() {
            return Wildcard::marked(plain, ignore_case).map(Self::Fixed);
        }
        Ok(Self::Template { parts, ignore_case })
    }

    /// Whether `text` matches as a whole. A variable without value matches nothing.
    pub(super) fn matches(&self, text: &str, facts: &Facts<'_>) -> bool {
        match self {
            Self::Fixed(wildcard) => wildcard.matches(text),
            Self::Template { parts, ignore_case } => expand(parts, facts)
                .and_then(|pattern| Wildcard::marked(&pattern, *ignore_case).ok())
                .is_some_and(|wildcard| wildcard.matches(text)),
        }
    }
}

/// The parts of a text with variables; its wildcards are marked if it has any.
pub(super) fn parts(text: &str, wild: bool) -> Result<Vec<Part>, PolicyError> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(PolicyError::Syntax("a pattern is too long"));
    }
    let bad = || PolicyError::Variable(text.to_owned());
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        push_plain(&mut plain, before, wild);
        let (inside, behind) = after.split_once('}').ok_or_else(bad)?;
        rest = behind;
        if let "*" | "?" | "$" = inside {
            plain.push_str(inside);
            continue;
        }
        if !plain.is_empty() {
            parts.push(Part::Plain(std::mem::take(&mut plain)));
        }
        parts.push(variable(inside).ok_or_else(bad)?);
        if parts.len() > MAX_VARIABLES {
            return Err(bad());
        }
    }
    push_plain(&mut plain, rest, wild);
    if !plain.is_empty() || parts.is_empty() {
        parts.push(Part::Plain(plain));
    }
    Ok(parts)
}

fn push_plain(out: &mut String, text: &str, wild: bool) {
    if wild { out.push_str(&mark(text)) } else { out.push_str(text) }
}

fn variable(inside: &str) -> Option<Part> {
    let (name, default) = match inside.split_once(',') {
        Some((name, default)) => {
            let text = default.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            (name.trim(), Some(text.to_owned()))
        }
        None => (inside.trim(), None),
    };
    let name = Name::compile(name).filter(|name| !name.is_multivalued())?;
    Some(Part::Variable { name, default })
}

/// The text with its variables' values, wildcards still marked; `None` where a value is missing or could be
/// mistaken for a mark.
pub(super) fn expand(parts: &[Part], facts: &Facts<'_>) -> Option<String> {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Plain(text) => out.push_str(text),
            Part::Variable { name, default } => {
                let values = name.values(facts);
                let value = match (values.as_slice(), default) {
                    ([value], _) => value.as_ref(),
                    ([], Some(default)) => default.as_str(),
                    _ => return None,
                };
                if value.contains([STAR, ONE]) {
                    return None;
                }
                out.push_str(value);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WILD: Style = Style { wild: true, ignore_case: false, variables: true };

    fn matches(pattern: &str, text: &str) -> bool {
        Text::compile(pattern, WILD).unwrap().matches(text, &Facts::sample())
    }

    #[test]
    fn variables_bring_their_values_and_stay_within_them() {
        assert!(matches("home/${aws:username}/*", "home/alice/x"));
        assert!(!matches("home/${aws:username}/*", "home/bob/x"));
        assert!(matches("${AWS:UserName}", "alice"), "names fold");
        assert!(matches("${aws:PrincipalTag/team, 'none'}", "none"));
        assert!(!matches("${aws:PrincipalTag/team}", ""), "an absent value matches nothing");
        assert!(matches("a${*}b${?}${$}{x}", "a*b?${x}") && !matches("a${*}b", "axxb"));
        let starred = Facts { user_name: Some("*"), ..Facts::sample() };
        let text = Text::compile("${aws:username}", WILD).unwrap();
        assert!(text.matches("*", &starred) && !text.matches("bob", &starred), "a value is no pattern");
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for wrong in
            ["${", "${}", "${aws:username", "${aws:nonsense}", "${aws:username, x}", "${aws:TagKeys}"]
        {
            assert!(Text::compile(wrong, WILD).is_err(), "{wrong}");
        }
        let old = Style { variables: false, ..WILD };
        let text = Text::compile("${aws:username}", old).unwrap();
        assert!(text.matches("${aws:username}", &Facts::sample()), "plain text in policies of 2008");
    }
}
