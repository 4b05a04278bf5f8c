//! One description of each shape: its members, which are required, and their constraints.
//!
//! `shape!` makes the struct that a client writes and the daemon holds, and the parser that checks every constraint
//! and words every violation. A parsed request cannot break a rule of its shape.

use std::fmt::{self, Write};
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::parameters::{Parameters, Shown, push_camel};
use super::rule::{Rule, each_sentence};
use super::{Blob, EncryptionContext, SecretBlob, Timestamp, Violation};

/// Most violations named in one message.
const MAX_VIOLATIONS: usize = 64;

/// Where a member stands: `tags.1.member.tagKey`, `constraints.sourceArn`.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The structure it belongs to, and of a list of them the number counted from 1.
    pub parent: Option<(&'a At<'a>, Option<usize>)>,
    /// In snake case; empty for a structure, whose place is its parent's.
    pub name: &'static str,
}

impl At<'static> {
    /// A member of the request itself.
    pub const fn top(name: &'static str) -> Self {
        Self { parent: None, name }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parent {
            Some((list, Some(number))) => write!(f, "{list}.{number}.member.")?,
            Some((structure, None)) if !structure.name.is_empty() => write!(f, "{structure}.")?,
            _ => {}
        }
        let mut camel = String::new();
        push_camel(&mut camel, self.name);
        f.write_str(&camel)
    }
}

/// The violations found so far.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// A required member is absent; of a secret not even that is shown.
    pub fn absent<T: Member>(&mut self, at: &At<'_>) {
        self.push(Violation::new(at, (!T::SECRET).then_some("null"), "Member must not be null"));
    }

    /// Everything found.
    pub fn into_list(self) -> Vec<Violation> {
        self.0
    }

    fn push(&mut self, violation: Violation) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(violation);
        }
    }

    fn check<W: Measure>(&mut self, wire: &W, at: &At<'_>, rules: &[Rule]) {
        for rule in rules {
            if let Rule::All(rules) = rule {
                self.check(wire, at, rules);
            }
            for sentence in wire.broken(rule) {
                let shown = wire.quoted().map(|value| format!("'{value}'"));
                self.push(Violation::new(at, shown.as_deref(), &sentence));
            }
        }
    }
}

/// A value that rules can be held against.
trait Measure {
    fn length(&self) -> Option<usize> {
        None
    }
    fn number(&self) -> Option<i64> {
        None
    }
    fn text(&self) -> Option<&str> {
        None
    }
    /// As messages show it; `None` for bytes, which they do not show.
    fn quoted(&self) -> Option<String>;

    /// The sentences of `rule` that this value breaks.
    fn broken(&self, rule: &Rule) -> Vec<String> {
        let (above, below, form) = match rule {
            Rule::Length(min, max) => {
                (self.length().is_some_and(|n| n > *max), self.length().is_some_and(|n| n < *min), false)
            }
            Rule::Range(min, max) => {
                (self.number().is_some_and(|n| n > *max), self.number().is_some_and(|n| n < *min), false)
            }
            Rule::Form(pattern) => (false, false, self.text().is_some_and(|text| !(pattern.matches)(text))),
            Rule::Each(_) | Rule::All(_) => (false, false, false),
        };
        if !above && !below && !form {
            return Vec::new();
        }
        let mut all = rule.sentences();
        vec![all.swap_remove(usize::from(below))]
    }
}

impl Measure for String {
    fn length(&self) -> Option<usize> {
        Some(self.chars().count())
    }
    fn text(&self) -> Option<&str> {
        Some(self)
    }
    fn quoted(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Measure for i64 {
    fn number(&self) -> Option<i64> {
        Some(*self)
    }
    fn quoted(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Measure for Blob {
    fn length(&self) -> Option<usize> {
        Some(self.0.len())
    }
    fn quoted(&self) -> Option<String> {
        None
    }
}

impl Measure for SecretBlob {
    fn length(&self) -> Option<usize> {
        Some(self.0.len())
    }
    fn quoted(&self) -> Option<String> {
        None
    }
}

impl Measure for EncryptionContext {
    fn quoted(&self) -> Option<String> {
        let mut out = String::from("{");
        for (at, (key, value)) in self.iter().enumerate() {
            let _ = write!(out, "{}{key}={value}", if at == 0 { "" } else { ", " });
        }
        out.push('}');
        Some(out)
    }
}

/// A member of a shape: how it is read from the wire, checked and shown.
pub trait Member: Sized + Shown {
    /// What the JSON is read into, before any constraint is checked.
    type Wire: for<'de> Deserialize<'de> + Quoted;
    /// Whether violations inside a list name the element (structures) or the list (plain values).
    const NESTED: bool = false;
    /// Whether messages tell nothing of its value.
    const SECRET: bool = false;

    /// Checks `wire` against the type and `rules`; `None` only when a violation was added.
    fn take(wire: Self::Wire, at: &At<'_>, rules: &[Rule], found: &mut Violations) -> Option<Self>;

    /// The sentence of the type's own constraint, if it has one.
    fn own_sentence() -> Option<String> {
        None
    }
}

/// How a value of the wire looks inside the brackets of a list in a message.
pub trait Quoted {
    /// The text.
    fn in_list(&self) -> String;
}

impl<T: Measure> Quoted for T {
    fn in_list(&self) -> String {
        self.quoted().unwrap_or_default()
    }
}

macro_rules! plain_member {
    ($($type:ty),+) => {$(
        impl Member for $type {
            type Wire = Self;
            fn take(wire: Self, at: &At<'_>, rules: &[Rule], found: &mut Violations) -> Option<Self> {
                found.check(&wire, at, rules);
                Some(wire)
            }
        }
    )+};
}

plain_member!(String, i64, Blob, EncryptionContext);

impl Member for SecretBlob {
    type Wire = Self;
    const SECRET: bool = true;

    fn take(wire: Self, at: &At<'_>, rules: &[Rule], found: &mut Violations) -> Option<Self> {
        found.check(&wire, at, rules);
        Some(wire)
    }
}

macro_rules! free_member {
    ($($type:ty),+) => {$(
        impl Measure for $type {
            fn quoted(&self) -> Option<String> { Some(format!("{self:?}")) }
        }
        impl Member for $type {
            type Wire = Self;
            fn take(wire: Self, _: &At<'_>, _: &[Rule], _: &mut Violations) -> Option<Self> {
                Some(wire)
            }
        }
    )+};
}

free_member!(bool, Timestamp);

/// An enumeration of the protocol.
pub trait Choice: Sized {
    /// From its spelling.
    fn from_text(text: &str) -> Option<Self>;
    /// Its spelling.
    fn text(&self) -> &'static str;
    /// All spellings, for messages.
    fn listed() -> String;
}

impl<T: Choice> Member for T {
    type Wire = ChoiceText;

    fn take(wire: ChoiceText, at: &At<'_>, _: &[Rule], found: &mut Violations) -> Option<Self> {
        let value = Self::from_text(&wire.0);
        if value.is_none() {
            let sentence = Self::own_sentence().unwrap_or_default();
            found.push(Violation::new(at, Some(&format!("'{}'", wire.0)), &sentence));
        }
        value
    }

    fn own_sentence() -> Option<String> {
        Some(format!("Member must satisfy enum value set: [{}]", Self::listed()))
    }
}

/// The text of an enumeration's value, not yet checked.
#[derive(Debug, serde::Deserialize)]
#[serde(transparent)]
pub struct ChoiceText(String);

impl Quoted for ChoiceText {
    fn in_list(&self) -> String {
        self.0.clone()
    }
}

impl<T: Member> Member for Vec<T> {
    type Wire = Vec<T::Wire>;

    fn take(wire: Self::Wire, at: &At<'_>, rules: &[Rule], found: &mut Violations) -> Option<Self> {
        let quoted = || format!("'[{}]'", wire.iter().map(Quoted::in_list).collect::<Vec<_>>().join(", "));
        for rule in rules {
            if let Rule::Length(min, max) = rule {
                let sentences = rule.sentences();
                let broken = if wire.len() > *max { Some(0) } else { (wire.len() < *min).then_some(1) };
                if let Some(which) = broken {
                    found.push(Violation::new(at, Some(&quoted()), &sentences[which]));
                }
            }
        }
        let each = rules.iter().find_map(|rule| if let Rule::Each(each) = rule { Some(*each) } else { None });
        let each = each.unwrap_or(&[]);
        if T::NESTED {
            let item = |(number, wire)| {
                T::take(wire, &At { parent: Some((at, Some(number + 1))), name: "" }, each, found)
            };
            return wire.into_iter().enumerate().map(item).collect();
        }
        let shown = quoted();
        let mut inner = Violations::default();
        let items: Option<Vec<T>> =
            wire.into_iter().map(|wire| T::take(wire, at, each, &mut inner)).collect();
        if !inner.0.is_empty() {
            let sentences = T::own_sentence().into_iter().chain(each.iter().flat_map(Rule::sentences));
            found.push(Violation::new(at, Some(&shown), &each_sentence(sentences)));
        }
        items
    }
}

impl<T: Quoted> Quoted for Vec<T> {
    fn in_list(&self) -> String {
        format!("[{}]", self.iter().map(Quoted::in_list).collect::<Vec<_>>().join(", "))
    }
}

/// A structure on the wire: a JSON object, never an array of its members in order.
#[derive(Debug)]
pub struct Object<W>(pub W);

impl<'de, W: Deserialize<'de>> Deserialize<'de> for Object<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

impl<W: Quoted> Quoted for Object<W> {
    fn in_list(&self) -> String {
        self.0.in_list()
    }
}

struct ObjectVisitor<W>(PhantomData<W>);

impl<'de, W: Deserialize<'de>> Visitor<'de> for ObjectVisitor<W> {
    type Value = W;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<W, A::Error> {
        W::deserialize(MapAccessDeserializer::new(members))
    }
}

/// Appends a shape as a JSON object.
pub(super) fn show_object(out: &mut String, fill: impl FnOnce(&mut Parameters)) -> bool {
    let mut parameters = Parameters::new();
    fill(&mut parameters);
    out.push_str(&parameters.finish());
    true
}

/// Declares shapes; see the module's head. Rules stand in brackets after the type.
macro_rules! shape {
    ($($(#[$meta:meta])* $name:ident $(for $operation:ident)? {
        $(required { $($(#[$rm:meta])* $r:ident: $rt:ty $([$($rrule:expr),+])?,)* })?
        $(optional { $($(#[$om:meta])* $o:ident: $ot:ty $([$($orule:expr),+])?,)* })?
    })+) => {$(
        $(#[$meta])*
        #[derive(Debug, serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            $($($(#[$rm])* pub $r: $rt,)*)?
            $($($(#[$om])* #[serde(skip_serializing_if = "Option::is_none")] pub $o: Option<$ot>,)*)?
        }

        impl $name {
            /// With the required members alone.
            #[allow(clippy::new_without_default)]
            pub fn new($($($r: impl Into<$rt>,)*)?) -> Self {
                Self { $($($r: $r.into(),)*)? $($($o: None,)*)? }
            }

            /// Tokens of grants that the caller shows.
            pub fn tokens_of_grants(&self) -> &[String] {
                $($($crate::api::shape::tokens!(self, $o);)*)?
                &[]
            }
        }

        const _: () = {
            use $crate::api::shape::{At, Member, Object, Quoted, Violations};
            use $crate::api::{Parameters, Rule, Shown};

            /// The shape as read, before any check.
            #[derive(serde::Deserialize)]
            #[serde(rename_all = "PascalCase")]
            pub struct Wire {
                $($(#[serde(default)] $r: Option<<$rt as Member>::Wire>,)*)?
                $($(#[serde(default)] $o: Option<<$ot as Member>::Wire>,)*)?
            }

            impl Quoted for Wire {
                fn in_list(&self) -> String { String::from(stringify!($name)) }
            }

            impl Member for $name {
                type Wire = Object<Wire>;
                const NESTED: bool = true;

                #[allow(unused_variables, clippy::unused_unit)]
                fn take(Object(wire): Object<Wire>, at: &At<'_>, _: &[Rule], found: &mut Violations) -> Option<Self> {
                    // The element of a list stands where its number says.
                    let own = at.parent.filter(|_| at.name.is_empty()).unwrap_or((at, None));
                    $($(
                        let place = At { parent: Some(own), name: stringify!($r) };
                        let $r = match wire.$r {
                            Some(value) => <$rt as Member>::take(value, &place, &[$($($rrule),+)?], found),
                            None => { found.absent::<$rt>(&place); None }
                        };
                    )*)?
                    $($(
                        let place = At { parent: Some(own), name: stringify!($o) };
                        let $o = match wire.$o {
                            Some(value) => <$ot as Member>::take(value, &place, &[$($($orule),+)?], found).map(Some),
                            None => Some(None),
                        };
                    )*)?
                    Some(Self { $($($r: $r?,)*)? $($($o: $o?,)*)? })
                }
            }

            impl Shown for $name {
                fn show(&self, out: &mut String) -> bool {
                    #[allow(unused_variables)]
                    $crate::api::shape::show_object(out, |parameters: &mut Parameters| {
                        $($(parameters.add(stringify!($r), &self.$r);)*)?
                        $($(if let Some(value) = &self.$o { parameters.add(stringify!($o), value); })*)?
                    })
                }
            }
        };

        $(impl $crate::api::Request for $name {
            const OPERATION: $crate::api::Operation = $crate::api::Operation::$operation;

            fn grant_tokens(&self) -> &[String] {
                self.tokens_of_grants()
            }
        })?
    )+};
}
pub(super) use shape;

/// Returns the member that holds tokens of grants, if this is it.
macro_rules! tokens {
    ($shape:expr, grant_tokens) => {
        if let Some(tokens) = &$shape.grant_tokens {
            return tokens;
        }
    };
    ($shape:expr, $other:ident) => {};
}
pub(super) use tokens;
