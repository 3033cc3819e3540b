//! The functions that run on this node: transforms in the chains of their topics, consumers as processors, one for each
//! partition that this node leads.

mod ports;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_function::{Chain, FileModule, FunctionHost, Processor, ProcessorError};
use bus_metadata::MetadataImage;
use bus_protocol::request::FunctionInfo;
use bus_protocol::{Attachment, PartitionId, TopicName, TopicPartition};
use bus_replica::Partition;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::blobs::Blobs;
use crate::metrics::Metrics;
use crate::modules::Modules;
use crate::node::Node;
use crate::topics::Served;

/// The first and the longest pause before a processor that ended is started again.
const RESTART: Duration = Duration::from_secs(1);
const RESTART_LAST: Duration = Duration::from_secs(30);

/// What is deployed, and what of it runs here. The reconciler writes, everybody reads.
pub(crate) struct Functions {
    pub(crate) host: Arc<FunctionHost>,
    blobs: Blobs,
    deployed: Mutex<BTreeMap<String, Deployed>>,
    processors: Mutex<HashMap<(String, TopicPartition), Attendant>>,
}

#[derive(Clone)]
struct Deployed {
    /// The log index of the first deployment: tells a function from one of its name that was deleted.
    order: u64,
    version: u32,
    interface: String,
    paused: bool,
    /// The function, or why it cannot run.
    function: Result<Arc<bus_function::Function>, String>,
    spec: bus_protocol::FunctionSpec,
    module: bus_protocol::BlobId,
}

/// A running processor.
struct Attendant {
    function: Arc<bus_function::Function>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    partition: Partition,
    /// Behind the last record that is done with; -1 before the first is known.
    position: Arc<AtomicI64>,
}

impl Attendant {
    /// Whether it runs this very function on this very partition: a name may be given anew, and so may a version.
    fn is(&self, function: &Arc<bus_function::Function>, partition: &Partition) -> bool {
        Arc::ptr_eq(&self.function, function) && self.partition.same_as(partition)
    }
}

impl Functions {
    pub(crate) fn new(host: FunctionHost, blobs: Blobs) -> Self {
        Self { host: Arc::new(host), blobs, deployed: Mutex::default(), processors: Mutex::default() }
    }

    /// Makes the image's functions ready to be called; nothing is compiled before the first call.
    pub(crate) fn load(&self, image: &MetadataImage, modules: &Modules) {
        let mut deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        deployed.retain(|name, _| image.function(name).is_some());
        for wanted in image.functions() {
            let current = &wanted.current;
            let known = deployed.get_mut(&wanted.name).filter(|known| {
                (known.order, known.version, known.module) == (wanted.order, current.version, current.module)
                    // What could not run for want of its module is tried again.
                    && (known.function.is_ok() || modules.is_missing(current.module))
            });
            if let Some(known) = known {
                known.paused = wanted.paused;
                continue;
            }
            let module = FileModule::new(current.module, self.blobs.path(current.module));
            let function = if modules.is_missing(current.module) {
                Err("its module is being fetched from another broker".to_owned())
            } else {
                let function = self.host.function(current.spec.clone(), current.version, Arc::new(module));
                function.map_err(|error| error.to_string())
            };
            if let Err(error) = &function {
                tracing::warn!(function = %wanted.name, error, "the function cannot run");
            }
            let entry = Deployed {
                order: wanted.order,
                version: current.version,
                interface: current.interface.clone(),
                paused: wanted.paused,
                function,
                spec: current.spec.clone(),
                module: current.module,
            };
            deployed.insert(wanted.name.clone(), entry);
        }
    }

    /// The transforms of a topic, in order; an error where one of them cannot run: then nothing may pass.
    pub(crate) fn chain(&self, image: &MetadataImage, topic: &TopicName) -> Result<Chain, String> {
        let deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut functions = Vec::new();
        for wanted in image.transforms_of(topic).into_iter().filter(|function| !function.paused) {
            match deployed.get(&wanted.name).map(|deployed| &deployed.function) {
                Some(Ok(function)) => functions.push(Arc::clone(function)),
                Some(Err(why)) => {
                    return Err(format!("transform {} of topic {topic} cannot run: {why}", wanted.name));
                }
                None => return Err(format!("transform {} of topic {topic} is not loaded", wanted.name)),
            }
        }
        Ok(Chain::new(functions))
    }

    /// Starts and stops processors until each consumer function attends each partition of its topics led here.
    pub(crate) async fn attend(&self, node: &Arc<Node>, image: &MetadataImage) {
        let wanted = self.wanted(node, image);
        let surplus: Vec<_> = {
            let mut processors = self.processors.lock().unwrap_or_else(PoisonError::into_inner);
            let surplus = processors.iter().filter(|(key, running)| {
                running.task.is_finished()
                    || wanted.get(*key).is_none_or(|(function, partition)| !running.is(function, partition))
            });
            let surplus: Vec<_> = surplus.map(|(key, _)| key.clone()).collect();
            surplus.into_iter().filter_map(|key| processors.remove(&key)).collect()
        };
        // The old version has committed its place before the new one asks for it.
        stop(surplus).await;
        let mut processors = self.processors.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, (function, partition)) in wanted {
            if processors.contains_key(&key) {
                continue;
            }
            match start(node, function, partition, key.1.clone()) {
                Ok(attendant) => drop(processors.insert(key, attendant)),
                Err(error) => tracing::error!(function = %key.0, %error, "the function cannot consume"),
            }
        }
    }

    fn wanted(
        &self,
        node: &Arc<Node>,
        image: &MetadataImage,
    ) -> HashMap<(String, TopicPartition), (Arc<bus_function::Function>, Partition)> {
        let deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = HashMap::new();
        for function in image.functions().filter(|function| !function.paused) {
            let Attachment::Consumer { topics, .. } = &function.spec().attachment else { continue };
            let Some(Ok(runs)) = deployed.get(&function.name).map(|deployed| &deployed.function) else {
                continue;
            };
            for topic in topics.iter().filter_map(|name| node.topics.get(name).ok()) {
                for (number, served) in topic.partitions.load().iter().enumerate() {
                    if let Served::Here(partition) = served {
                        let at = TopicPartition::new(topic.name.clone(), number as PartitionId);
                        wanted.insert((function.name.clone(), at), (Arc::clone(runs), partition.clone()));
                    }
                }
            }
        }
        wanted
    }

    /// Stops the processors of a topic that goes.
    pub(crate) async fn leave(&self, topic: &TopicName) {
        self.stop_where(|at| at.topic == *topic).await;
    }

    /// Stops all processors; each commits its place.
    pub(crate) async fn stop_all(&self) {
        self.stop_where(|_| true).await;
    }

    async fn stop_where(&self, leaves: impl Fn(&TopicPartition) -> bool) {
        let leaving = {
            let mut processors = self.processors.lock().unwrap_or_else(PoisonError::into_inner);
            processors.extract_if(|(_, at), _| leaves(at)).map(|(_, attendant)| attendant).collect()
        };
        stop(leaving).await;
    }

    /// What is deployed, by name, and how it does here.
    pub(crate) fn list(&self) -> Vec<FunctionInfo> {
        let deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        deployed.values().map(|deployed| self.info(deployed)).collect()
    }

    /// One function.
    pub(crate) fn get(&self, name: &str) -> Option<FunctionInfo> {
        let deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        deployed.map(|deployed| self.info(&deployed))
    }

    /// The lines of a function's log after a sequence number.
    pub(crate) fn logs(&self, name: &str, after: u64) -> Option<Vec<bus_protocol::request::LogLine>> {
        let deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        Some(deployed.get(name)?.function.as_ref().map(|function| function.logs(after)).unwrap_or_default())
    }

    fn info(&self, deployed: &Deployed) -> FunctionInfo {
        let stats = deployed.function.as_ref().map(|function| function.stats());
        let state = match &stats {
            _ if deployed.paused => "paused",
            Ok(stats) => stats.state.as_str(),
            Err(_) => "failing",
        };
        let (stats, last_error) = match stats {
            Ok(stats) => (Some(stats.clone()), stats.last_error),
            Err(why) => (None, Some((0, why.clone()))),
        };
        let count = |of: fn(&bus_function::Stats) -> u64| stats.as_ref().map_or(0, of);
        FunctionInfo {
            spec: deployed.spec.clone(),
            version: deployed.version,
            state: state.to_owned(),
            interface: deployed.interface.clone(),
            module: deployed.module.to_string(),
            records_in: count(|stats| stats.records_in),
            records_out: count(|stats| stats.records_out),
            failed: count(|stats| stats.records_failed),
            lag: self.lag(&deployed.spec.name),
            instances: stats.as_ref().map_or(0, |stats| stats.instances),
            memory_bytes: count(|stats| stats.memory_bytes),
            fuel: count(|stats| stats.fuel),
            last_error,
        }
    }

    fn lag(&self, name: &str) -> u64 {
        let processors = self.processors.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = processors.iter().filter(|((function, _), _)| function == name);
        mine.map(|(_, attendant)| {
            let start = attendant.partition.reader().log_start();
            let at = attendant.position.load(Ordering::Relaxed).max(start);
            u64::try_from(attendant.partition.high_watermark() - at).unwrap_or(0)
        })
        .sum()
    }

    /// The figures of all functions, for a scrape.
    pub(crate) fn export(&self, metrics: &Metrics) {
        for info in self.list() {
            let labels = [("function", info.spec.name.clone())];
            metrics.set("bus_function_records_in", &labels, info.records_in as f64);
            metrics.set("bus_function_records_out", &labels, info.records_out as f64);
            metrics.set("bus_function_records_failed", &labels, info.failed as f64);
            metrics.set("bus_function_lag", &labels, info.lag as f64);
            metrics.set("bus_function_instances", &labels, f64::from(info.instances));
            metrics.set("bus_function_memory_bytes", &labels, info.memory_bytes as f64);
            metrics.set("bus_function_fuel", &labels, info.fuel as f64);
        }
    }
}

fn start(
    node: &Arc<Node>,
    function: Arc<bus_function::Function>,
    partition: Partition,
    at: TopicPartition,
) -> Result<Attendant, ProcessorError> {
    let processor = Processor::new(
        Arc::clone(&function),
        at.topic,
        at.partition,
        Arc::new(ports::PartitionSource::new(node, partition.clone())),
        Arc::new(ports::TopicSink::new(node)),
        Arc::new(ports::GroupOffsets::new(node)),
    )?;
    let position = processor.position();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(attend(Arc::new(processor), stopped));
    Ok(Attendant { function, stop, task, partition, position })
}

/// Runs a processor until it is stopped, and again where it ended otherwise.
async fn attend(processor: Arc<Processor>, stop: watch::Receiver<bool>) {
    let mut pause = RESTART;
    loop {
        let (running, mut stopped) = (Arc::clone(&processor), stop.clone());
        // A task of its own, so that a panic ends there. A sender that is gone wants it stopped.
        let run = tokio::spawn(async move {
            running.run(async move { drop(stopped.wait_for(|stop| *stop).await) }).await
        });
        let began = tokio::time::Instant::now();
        match run.await {
            Ok(Ok(_) | Err(ProcessorError::Stopped)) => return,
            Ok(Err(error)) => tracing::warn!(?processor, %error, "a processor ended: starting it again"),
            Err(panic) => {
                tracing::error!(?processor, error = %panic, "a processor failed: starting it again")
            }
        }
        if began.elapsed() > RESTART_LAST {
            pause = RESTART;
        }
        let mut stopped = stop.clone();
        if timeout(pause, stopped.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
        pause = (pause * 2).min(RESTART_LAST);
    }
}

async fn stop(attendants: Vec<Attendant>) {
    for attendant in &attendants {
        attendant.stop.send_replace(true);
    }
    for attendant in attendants {
        if let Err(error) = attendant.task.await {
            tracing::error!(%error, "a processor ended badly");
        }
    }
}
