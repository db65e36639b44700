//! Takes the members of an object one by one, and refuses the rest: of the configuration, of a
//! call, of a query.

use std::borrow::Cow;

use crate::json::Node;
use crate::problem::{Fault, pointer_token};

/// Named values, each of which is taken once.
#[derive(Debug)]
pub struct Object<'a, V = Node<'a>> {
    pointer: Cow<'static, str>,
    /// What a named value is called in faults.
    noun: &'static str,
    members: Vec<(Cow<'a, str>, V)>,
    asked: Vec<(&'static str, bool)>,
}

impl<'a, V> Object<'a, V> {
    /// An object at this pointer, without members yet.
    pub fn new(pointer: impl Into<Cow<'static, str>>, noun: &'static str) -> Self {
        Object {
            pointer: pointer.into(),
            noun,
            members: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Adds a member. A second one of a name is a fault, and the first stays.
    pub fn add(&mut self, name: Cow<'a, str>, value: V) -> Result<(), Fault> {
        if self.members.iter().any(|(known, _)| *known == name) {
            let detail = format!("This {} stands here twice.", self.noun);
            return Err(Fault::at(self.at(&name), detail));
        }
        self.members.push((name, value));
        Ok(())
    }

    /// What has not been taken.
    pub fn members(&self) -> &[(Cow<'a, str>, V)] {
        &self.members
    }

    /// The member of this name, which then counts as known.
    pub fn take(&mut self, name: &'static str) -> Option<V> {
        let index = self.members.iter().position(|(known, _)| known == name);
        self.asked.push((name, index.is_some()));
        index.map(|index| self.members.swap_remove(index).1)
    }

    /// Whether a member of this name is there and not taken.
    pub fn peek(&self, name: &str) -> bool {
        self.members.iter().any(|(known, _)| known == name)
    }

    /// Whether a member of this name was there to be taken.
    pub fn had(&self, name: &'static str) -> bool {
        self.asked.contains(&(name, true))
    }

    /// The pointer to a member.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{}", self.pointer, pointer_token(name))
    }

    /// A fault for each member that was not asked for.
    pub fn rest(&self) -> impl Iterator<Item = Fault> {
        self.members.iter().map(|(name, _)| {
            let known: Vec<&str> = self.asked.iter().map(|(name, _)| *name).collect();
            let verb = if known.len() == 1 { "is" } else { "are" };
            let (noun, known) = (self.noun, list(&known, "and"));
            let detail = format!("This {noun} is not known; {known} {verb}.");
            Fault::at(self.at(name), detail)
        })
    }
}

/// `a, b and c`
pub fn list(names: &[&str], last: &str) -> String {
    match names {
        [] => String::new(),
        [name] => (*name).to_owned(),
        [first @ .., name] => format!("{} {last} {name}", first.join(", ")),
    }
}

/// Reads the configuration, and collects its faults.
pub struct Reader<'e> {
    /// What is wrong so far.
    pub faults: Vec<Fault>,
    /// The headers that carry secrets, in lower case.
    pub secret_headers: Vec<String>,
    /// The environment variables that the host lets the module see.
    pub env: &'e dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    /// Notes a fault.
    pub fn fault(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.faults.push(Fault::at(pointer, detail));
    }

    /// What stands at this pointer, as an object.
    pub fn object<'a>(&mut self, pointer: &str, node: Node<'a>) -> Option<Object<'a>> {
        let Some(Ok(members)) = node.members() else {
            self.fault(pointer, "This must be an object.");
            return None;
        };
        let mut object = Object::new(pointer.to_owned(), "member");
        for (name, node) in members {
            self.faults.extend(object.add(name, node).err());
        }
        Some(object)
    }

    /// Ends an object: nothing may be left of it.
    pub fn refuse_the_rest(&mut self, object: Object<'_>) {
        self.faults.extend(object.rest());
    }

    /// A member that must be there.
    pub fn required<'a>(
        &mut self,
        object: &mut Object<'a>,
        name: &'static str,
    ) -> Option<Node<'a>> {
        let node = object.take(name);
        if node.is_none() {
            self.fault(object.at(name), "This member is required.");
        }
        node
    }

    /// A text without control characters, and not an empty one.
    pub fn text(&mut self, pointer: &str, node: Node<'_>) -> Option<String> {
        match node.text() {
            Some(text) if !text.is_empty() && !text.chars().any(char::is_control) => {
                Some(text.into_owned())
            }
            _ => {
                self.fault(pointer, "This must be a string, and not an empty one.");
                None
            }
        }
    }

    /// A text that must be there.
    pub fn required_text(&mut self, object: &mut Object<'_>, name: &'static str) -> Option<String> {
        let node = self.required(object, name)?;
        self.text(&object.at(name), node)
    }

    /// A text that may be left out.
    pub fn optional_text(&mut self, object: &mut Object<'_>, name: &'static str) -> Option<String> {
        let node = object.take(name)?;
        self.text(&object.at(name), node)
    }

    /// A whole number within bounds; `Some(None)` where it is left out.
    pub fn count(
        &mut self,
        object: &mut Object<'_>,
        name: &'static str,
        (least, most): (u32, u32),
    ) -> Option<Option<u32>> {
        let Some(node) = object.take(name) else {
            return Some(None);
        };
        let number = node.number().and_then(|number| number.parse().ok());
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.fault(
                object.at(name),
                format!("This must be a whole number from {least} to {most}."),
            );
        }
        number.map(Some)
    }

    /// A member that is true or false; false where it is left out.
    pub fn flag(&mut self, object: &mut Object<'_>, name: &'static str) -> bool {
        match object.take(name).map(|node| node.raw()) {
            Some("true") => true,
            None | Some("false") => false,
            Some(_) => {
                self.fault(object.at(name), "This must be true or false.");
                false
            }
        }
    }
}
