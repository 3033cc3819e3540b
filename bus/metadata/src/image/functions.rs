//! Functions and their versions.

use std::collections::BTreeSet;
use std::sync::Arc;

use bus_protocol::{Attachment, BlobId, FunctionSpec, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::{MetadataImage, check_text};
use crate::{Applied, Deployment, Rejected, limits};

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Transforms stand on their topic in this order: the log index of the first deployment.
    pub order: u64,
    /// Whether it is stopped where it is.
    pub paused: bool,
    /// What runs.
    pub current: Arc<FunctionVersion>,
    /// What ran before, the newest first, at most [`limits::PREVIOUS_VERSIONS`].
    pub previous: Vec<Arc<FunctionVersion>>,
}

/// One version of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionVersion {
    /// From 1.
    pub version: u32,
    /// Its settings.
    pub spec: FunctionSpec,
    /// Its bytes.
    pub module: BlobId,
    /// How it is called: `typed` or `flat`.
    pub interface: String,
    /// When it was deployed.
    pub deployed_at: Timestamp,
}

impl Function {
    /// The settings of the current version.
    pub fn spec(&self) -> &FunctionSpec {
        &self.current.spec
    }

    /// Whether it transforms `topic`.
    pub fn transforms(&self, topic: &TopicName) -> bool {
        matches!(&self.spec().attachment, Attachment::Transform { topic: on } if on == topic)
    }

    /// Whether it consumes `topic`.
    pub fn consumes(&self, topic: &TopicName) -> bool {
        matches!(&self.spec().attachment, Attachment::Consumer { topics, .. } if topics.contains(topic))
    }
}

impl MetadataImage {
    /// The functions that transform a topic, in the order in which its records pass them; paused ones too.
    pub fn transforms_of(&self, topic: &TopicName) -> Vec<&Arc<Function>> {
        let mut found: Vec<_> =
            self.functions.values().filter(|function| function.transforms(topic)).collect();
        found.sort_by_key(|function| function.order);
        found
    }

    /// The functions that consume a topic, by name; paused ones too.
    pub fn consumers_of(&self, topic: &TopicName) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values().filter(move |function| function.consumes(topic))
    }

    /// Every module that a function, or an earlier version of it, is made of: the rest can be deleted.
    pub fn modules(&self) -> BTreeSet<BlobId> {
        self.functions
            .values()
            .flat_map(|function| std::iter::once(&function.current).chain(&function.previous))
            .map(|version| version.module)
            .collect()
    }

    /// The functions that read, write or transform a topic.
    pub(super) fn functions_naming(&self, topic: &TopicName) -> Vec<String> {
        self.functions
            .values()
            .filter(|function| {
                let spec = function.spec();
                function.transforms(topic)
                    || function.consumes(topic)
                    || spec.outputs.contains(topic)
                    || spec.dead_letter.as_ref() == Some(topic)
            })
            .map(|function| function.name.clone())
            .collect()
    }

    pub(super) fn deploy_function(&mut self, index: u64, new: Deployment) -> Result<Applied, Rejected> {
        self.check_deployment(&new)?;
        let name = new.spec.name.clone();
        let version = |version| {
            let Deployment { spec, module, interface, timestamp } = new;
            Arc::new(FunctionVersion { version, spec, module, interface, deployed_at: timestamp })
        };
        let functions = Arc::make_mut(&mut self.functions);
        let version = match functions.get_mut(&name) {
            Some(function) => {
                let function = Arc::make_mut(function);
                let new = version(function.current.version + 1);
                let old = std::mem::replace(&mut function.current, new);
                function.previous.insert(0, old);
                function.previous.truncate(limits::PREVIOUS_VERSIONS);
                function.current.version
            }
            None => {
                let function = Function {
                    name: name.clone(),
                    order: index,
                    paused: false,
                    current: version(1),
                    previous: Vec::new(),
                };
                functions.insert(name, Arc::new(function));
                1
            }
        };
        Ok(Applied::Function { version })
    }

    fn check_deployment(&self, new: &Deployment) -> Result<(), Rejected> {
        let spec = &new.spec;
        let refuse = |message: String| Err(Rejected::InvalidFunction { message });
        spec.validate().map_err(|message| Rejected::InvalidFunction { message })?;
        check_text("interface", &new.interface, limits::INTERFACE_BYTES)?;
        let named = match &spec.attachment {
            Attachment::Transform { topic } => std::slice::from_ref(topic),
            Attachment::Consumer { topics, group } => {
                check_text("group", group, limits::GROUP_NAME_BYTES)?;
                topics.as_slice()
            }
        };
        if named.len().max(spec.outputs.len()) > limits::TOPICS_PER_FUNCTION {
            return refuse(format!(
                "a function names at most {} topics each way",
                limits::TOPICS_PER_FUNCTION
            ));
        }
        let named = named.iter().chain(&spec.outputs).chain(&spec.dead_letter);
        if let Some(missing) = named.into_iter().find(|topic| !self.topics.contains_key(topic)) {
            return Err(Rejected::UnknownTopic { topic: missing.clone() });
        }
        match self.functions.get(&spec.name) {
            Some(function) => {
                if std::mem::discriminant(&function.spec().attachment)
                    != std::mem::discriminant(&spec.attachment)
                {
                    let name = &spec.name;
                    return refuse(format!(
                        "function {name} cannot change between transform and consumer: delete it first"
                    ));
                }
                if function.current.version == u32::MAX {
                    return refuse(format!("function {} has no version numbers left", spec.name));
                }
            }
            None if self.functions.len() >= limits::FUNCTIONS => {
                return Err(Rejected::Full { what: "functions".into(), limit: limits::FUNCTIONS as u64 });
            }
            None => {}
        }
        self.check_neighbours(spec)
    }

    /// The rules between functions: how many stand on one topic, and which groups they share.
    fn check_neighbours(&self, spec: &FunctionSpec) -> Result<(), Rejected> {
        let mut others = self.functions.values().filter(|function| function.name != spec.name);
        match &spec.attachment {
            Attachment::Transform { topic } => {
                if others.filter(|function| function.transforms(topic)).count()
                    >= limits::TRANSFORMS_PER_TOPIC
                {
                    let what = format!("transforms on topic {topic}");
                    return Err(Rejected::Full { what, limit: limits::TRANSFORMS_PER_TOPIC as u64 });
                }
            }
            Attachment::Consumer { topics, group } => {
                let taken = others.find_map(|function| match &function.spec().attachment {
                    Attachment::Consumer { group: theirs, .. } if theirs == group => {
                        let topic = topics.iter().find(|topic| function.consumes(topic))?;
                        Some((topic.clone(), function.name.clone()))
                    }
                    _ => None,
                });
                if let Some((topic, function)) = taken {
                    return Err(Rejected::GroupInUse { group: group.clone(), topic, function });
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_paused(&mut self, name: &str, paused: bool) -> Result<Applied, Rejected> {
        if !self.functions.contains_key(name) {
            return Err(unknown(name));
        }
        if let Some(function) = Arc::make_mut(&mut self.functions).get_mut(name)
            && function.paused != paused
        {
            Arc::make_mut(function).paused = paused;
        }
        Ok(Applied::Done)
    }

    pub(super) fn delete_function(&mut self, name: &str) -> Result<Applied, Rejected> {
        if !self.functions.contains_key(name) {
            return Err(unknown(name));
        }
        Arc::make_mut(&mut self.functions).remove(name);
        Ok(Applied::Done)
    }
}

fn unknown(name: &str) -> Rejected {
    Rejected::UnknownFunction { name: name.chars().take(100).collect() }
}
