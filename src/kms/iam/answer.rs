//! What IAM and STS answer: a tree, written as the XML of the AWS Query protocol or as JSON.
//!
//! Made by the operations, written by `call`. Secrets are wiped when the tree goes.

use std::fmt::Write;

use zeroize::Zeroizing;

use crate::api::{Tag, Timestamp};

use super::super::policy::date_text;

/// A part of an answer.
#[derive(Debug)]
pub enum Node {
    /// A text, a number or a date.
    Text(String),
    /// True or false.
    Flag(bool),
    /// A policy document: percent-encoded in XML, as clients expect it.
    Document(String),
    /// A text that is wiped.
    Secret(Secret),
    /// A list.
    List(Vec<Node>),
    /// Members by name.
    Map(Vec<(&'static str, Node)>),
}

/// A secret on its way out.
pub struct Secret(pub Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Node {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Node {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Timestamp> for Node {
    fn from(time: Timestamp) -> Self {
        Self::Text(date_text(time.seconds()))
    }
}

impl From<&[Tag]> for Node {
    fn from(tags: &[Tag]) -> Self {
        let node = |tag: &Tag| {
            Self::Map(vec![("Key", tag.tag_key.as_str().into()), ("Value", tag.tag_value.as_str().into())])
        };
        Self::List(tags.iter().map(node).collect())
    }
}

impl Node {
    /// No members.
    pub fn empty() -> Self {
        Self::Map(Vec::new())
    }

    /// One member.
    pub fn of(name: &'static str, node: impl Into<Self>) -> Self {
        Self::Map(vec![(name, node.into())])
    }

    /// A list of texts.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(|text| Self::Text(text.into())).collect())
    }

    /// A member by its name.
    pub fn member(&self, name: &str) -> Option<&Self> {
        let Self::Map(members) = self else { return None };
        members.iter().find(|(own, _)| *own == name).map(|(_, node)| node)
    }

    /// The text of a text that is no secret.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn write_xml(&self, out: &mut String) {
        match self {
            Self::Text(text) => push_escaped(out, text),
            Self::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Self::Document(text) => push_percent(out, text),
            Self::Secret(secret) => push_escaped(out, &secret.0),
            Self::List(items) => {
                for item in items {
                    element(out, "member", |out| item.write_xml(out));
                }
            }
            Self::Map(members) => {
                for (name, node) in members {
                    element(out, name, |out| node.write_xml(out));
                }
            }
        }
    }

    fn write_json(&self, out: &mut String) {
        match self {
            Self::Text(text) | Self::Document(text) => push_json(out, text),
            Self::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Self::Secret(secret) => push_json(out, &secret.0),
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    item.write_json(out);
                }
                out.push(']');
            }
            Self::Map(members) => {
                out.push('{');
                for (at, (name, node)) in members.iter().enumerate() {
                    let _ = write!(out, "{}\"{name}\":", if at == 0 { "" } else { "," });
                    node.write_json(out);
                }
                out.push('}');
            }
        }
    }
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The operation.
    pub action: &'a str,
    /// The namespace of its service.
    pub namespace: &'a str,
    /// The id in the audit record.
    pub request_id: &'a str,
    /// JSON instead of XML.
    pub json: bool,
}

/// Room for an answer, so that the buffer never moves and leaves a copy of a secret behind.
const CAPACITY: usize = 4096;

impl Envelope<'_> {
    /// The body of an answer.
    pub fn answer(&self, node: &Node) -> Zeroizing<Vec<u8>> {
        let Self { action, namespace, request_id, json } = self;
        let mut out = String::with_capacity(CAPACITY);
        if *json {
            let _ = write!(out, "{{\"{action}Response\":{{\"{action}Result\":");
            node.write_json(&mut out);
            let _ = write!(out, ",\"ResponseMetadata\":{{\"RequestId\":\"{request_id}\"}}}}}}");
        } else {
            let _ = write!(out, "<{action}Response xmlns=\"{namespace}\">");
            if !matches!(node, Node::Map(members) if members.is_empty()) {
                let _ = write!(out, "<{action}Result>");
                node.write_xml(&mut out);
                let _ = write!(out, "</{action}Result>");
            }
            let _ = write!(
                out,
                "<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
            );
        }
        Zeroizing::new(out.into_bytes())
    }

    /// The body of an error.
    pub fn error(&self, code: &str, message: &str, is_ours: bool) -> Zeroizing<Vec<u8>> {
        let Self { namespace, request_id, json, .. } = self;
        let kind = if is_ours { "Receiver" } else { "Sender" };
        let error: Node =
            Node::Map(vec![("Type", kind.into()), ("Code", code.into()), ("Message", message.into())]);
        let mut out = String::new();
        if *json {
            out.push_str("{\"Error\":");
            error.write_json(&mut out);
            let _ = write!(out, ",\"RequestId\":\"{request_id}\"}}");
        } else {
            let _ = write!(out, "<ErrorResponse xmlns=\"{namespace}\"><Error>");
            error.write_xml(&mut out);
            let _ = write!(out, "</Error><RequestId>{request_id}</RequestId></ErrorResponse>");
        }
        Zeroizing::new(out.into_bytes())
    }
}

fn element(out: &mut String, name: &str, fill: impl FnOnce(&mut String)) {
    let _ = write!(out, "<{name}>");
    fill(out);
    let _ = write!(out, "</{name}>");
}

fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            // XML has no way to write them.
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

fn push_percent(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_xml_or_json_and_hostile_text_stays_inside() {
        let hostile = "<a>&\"'\n\u{1}\\";
        let node = Node::Map(vec![
            ("Text", hostile.into()),
            ("Flags", Node::List(vec![true.into(), false.into()])),
            ("Document", Node::Document("{\"a\": 1}".into())),
        ]);
        let envelope = Envelope { action: "Do", namespace: "ns", request_id: "id", json: false };
        let xml = String::from_utf8(envelope.answer(&node).to_vec()).unwrap();
        assert_eq!(
            xml,
            "<DoResponse xmlns=\"ns\"><DoResult><Text>&lt;a&gt;&amp;&quot;'&#10;\u{fffd}\\</Text><Flags><member>true\
             </member><member>false</member></Flags><Document>%7B%22a%22%3A%201%7D</Document></DoResult>\
             <ResponseMetadata><RequestId>id</RequestId></ResponseMetadata></DoResponse>"
        );
        let json = Envelope { json: true, ..envelope }.answer(&node);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["DoResponse"]["DoResult"]["Text"], hostile);
        assert_eq!(value["DoResponse"]["DoResult"]["Document"], "{\"a\": 1}");
        let error = envelope.error("NoSuchEntity", "gone", false);
        let expected = "<ErrorResponse xmlns=\"ns\"><Error><Type>Sender</Type><Code>NoSuchEntity</Code>\
                        <Message>gone</Message></Error><RequestId>id</RequestId></ErrorResponse>";
        assert_eq!(std::str::from_utf8(&error).unwrap(), expected);
    }
}
