//! The engine's part of a start: the checkpoint taken, its generation opened, the engine asked. Nothing of it needs a
//! container.

use crate::error::{Error, Result};
use crate::init::app::keeps_capabilities;
use crate::launch::protocol::Ahead;
use crate::launch::start::NotStood;
use crate::monitor::ask::{Asked, Planned, ask};
use crate::monitor::live::{EngineLive, Live, lock};
use crate::monitor::order::{EngineOrder, MonitorOrder, Verify};
use crate::monitor::{Teller, restart, verify};
use crate::name::{BackendName, CheckpointName};
use crate::spec::{ContainerSpec, apply};
use crate::store::{BackendStamp, Checkpoint, CheckpointRecord, Generation, Holder, LiveLock, Store};
use crate::worker::{NoServices, Plugin, Worker, engine};
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::request::FailedHelper;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The checkpoint, which is ours from here on, and what of it is to come back.
pub(super) struct Opened<'a> {
    wanted: &'a EngineOrder,
    checkpoint: Checkpoint,
    lock: LiveLock,
    record: CheckpointRecord,
    generation: Option<Generation>,
}

impl<'a> Opened<'a> {
    /// Takes the checkpoint, makes it where it is new, and opens what is to come back.
    ///
    /// # Errors
    /// It belongs to another backend or image, is in use, or cannot come back here.
    pub(super) fn new(order: &MonitorOrder, wanted: &'a EngineOrder) -> Result<Self> {
        let name = CheckpointName::new(&wanted.checkpoint)?;
        let store = Store::open(&order.data_root)?;
        let checkpoint = match store.exists(&name)? {
            true => store.checkpoint(&name)?,
            false if wanted.restart.is_some() => {
                return Err(store
                    .checkpoint(&name)
                    .err()
                    .map_or_else(|| Error::new("no such checkpoint"), Into::into));
            }
            false => store.create(&name, None)?,
        };
        let record = checkpoint.record()?;
        record.accepts(&name, &wanted.backend, &wanted.identity)?;
        let holder = Holder::here(&order.spec.name);
        let lock = if wanted.force {
            checkpoint.lock_live_forced(&holder)?
        } else {
            checkpoint.lock_live(&holder)?
        };
        checkpoint.clean_partials()?;
        let generation = match wanted.restart {
            Some(number) => Some(restart::open(&checkpoint, number, wanted, &order.spec)?),
            None => None,
        };
        Ok(Self { wanted, checkpoint, lock, record, generation })
    }

    /// Hears what the engine says of itself, and compares what cannot wait.
    ///
    /// # Errors
    /// The plugin cannot be loaded; a file is not what was saved.
    pub(super) fn prepare(self, plugin: Plugin, mut worker: Worker, teller: &dyn Teller) -> Result<Prepared> {
        let Opened { wanted, checkpoint, lock, record, generation } = self;
        let descriptor = worker.describe()?;
        let bound = record == record.bound(&stamp(&descriptor)?, &wanted.identity);
        let mut unverified = Vec::new();
        if let Some(generation) = &generation {
            if verify::may_plan_first(wanted.verify, &descriptor) {
                unverified = restart::view(generation).files;
            } else {
                verify::before(generation, &[], teller)?;
            }
        }
        let memory = generation.as_ref().map(|g| g.manifest().engine_state.clone()).unwrap_or_default();
        let staging = checkpoint.staging(&lock)?;
        let live = EngineLive {
            order: wanted.clone(),
            plugin,
            descriptor,
            checkpoint,
            lock: Mutex::new(Some(lock)),
            staging,
            memory: Mutex::new(memory),
            kept: Mutex::new(HashMap::new()),
            capturing: Mutex::new(()),
        };
        Ok(Prepared { live, worker, generation, unverified, bound })
    }
}

/// The engine's part, prepared before the container exists.
pub(super) struct Prepared {
    pub(super) live: EngineLive,
    pub(super) worker: Worker,
    pub(super) generation: Option<Generation>,
    /// Its files that were not compared yet with what was saved.
    pub(super) unverified: Vec<PathBuf>,
    /// The checkpoint was bound to backend and image as it would be now, when it was looked at just before it was locked:
    /// whoever has had it since could bind it to no others.
    pub(super) bound: bool,
}

impl Prepared {
    /// What can get ready while the engine is asked.
    ///
    /// # Errors
    /// What is to be started cannot be, or the clocks cannot be read.
    pub(super) fn ahead(&self, spec: &ContainerSpec) -> Result<Option<Ahead>> {
        let EngineLive { descriptor, order, .. } = &self.live;
        let (Some(generation), Some(command)) = (&self.generation, descriptor.waiting.clone()) else {
            return Ok(None);
        };
        let helper = apply::waiting(command, &descriptor.name)?;
        let clocks = restart::clocks(generation, &order.accept_loss)?;
        Ok(Some(Ahead { helper, clocks, keep_capabilities: keeps_capabilities(spec) }))
    }

    /// Asks the engine: usable, nothing against it, and what it needs.
    ///
    /// # Errors
    /// What stands against it, in the engine's words.
    pub(super) fn plan(
        &mut self,
        spec: &ContainerSpec,
        data_root: &Path,
        teller: &dyn Teller,
    ) -> Result<Planned> {
        let Self { live, worker, generation, unverified, .. } = self;
        let mut memory: EngineState = lock(&live.memory).clone();
        let staging = live.staging.path().to_path_buf();
        let cover = vec![data_root.to_path_buf()];
        let asked = Asked {
            engine_name: &live.descriptor.engine,
            backend: &live.descriptor.name,
            accept_loss: &live.order.accept_loss,
        };
        let planned = ask(spec, worker, &asked, &mut memory, generation.as_ref(), &staging, &cover)?;
        *lock(&live.memory) = memory;
        if let Some(generation) = generation.as_ref().filter(|_| !unverified.is_empty()) {
            if live.order.verify != Verify::Behind {
                unverified.clone_from(&planned.behind);
            }
            verify::before(generation, unverified, teller)?;
        }
        Ok(planned)
    }

    /// The backend's words for a helper that failed; where it has none, the helper's own.
    pub(super) fn explain(&mut self, mut failed: FailedHelper) -> Error {
        let Self { live, worker, generation, .. } = self;
        if let Some(generation) = generation {
            failed.generation = restart::view(generation);
        }
        let mut memory = lock(&live.memory).clone();
        match engine::explain(worker, &failed, &mut memory, &NoServices) {
            Ok(error) => error.into(),
            Err(error) => {
                tracing::debug!(%error, "the backend did not explain");
                NotStood::NotRebuilt(Box::new(failed)).into()
            }
        }
    }
}

/// Binds the checkpoint to backend and image: from now on others are refused.
///
/// # Errors
/// It has been bound to others meanwhile.
pub(super) fn settle(live: &Live) -> Result<()> {
    let Some(engine) = &live.engine else { return Ok(()) };
    Ok(engine.checkpoint.bind(&stamp(&engine.descriptor)?, &engine.order.identity)?)
}

fn stamp(descriptor: &Descriptor) -> Result<BackendStamp> {
    Ok(BackendStamp { name: BackendName::new(&descriptor.name)?, version: Some(descriptor.version.clone()) })
}
