//! The errors of all modules as the one that is told.

use crate::error::Error;

macro_rules! told {
    ($($kind:ty),* $(,)?) => {
        $(impl From<$kind> for Error {
            fn from(error: $kind) -> Self {
                let help = error.help();
                Self::from_parts(&error, help)
            }
        })*
    };
}

told!(
    crate::build::definition::DefinitionError,
    crate::cli::action_args::ArgsError,
    crate::config::ConfigError,
    crate::config::PathsError,
    crate::image::ImageError,
    crate::image::identity::IdentityError,
    crate::image::oci::reference::UriError,
    crate::instance::InstanceError,
    crate::name::NameError,
    crate::name::CheckpointRefError,
    crate::registry::LocateError,
    crate::registry::SelectError,
    crate::spec::apply::ApplyError,
    crate::spec::binds::BindError,
    crate::spec::resolve::SpecError,
    crate::store::StoreError,
    crate::worker::OptionError,
);

impl From<crate::worker::WorkerError> for Error {
    fn from(error: crate::worker::WorkerError) -> Self {
        match error {
            crate::worker::WorkerError::Backend { error, .. } => (*error).into(),
            other => {
                let help = other.help();
                let told = Self::from_parts(&other, help);
                match other.last_words() {
                    Some(words) => told.detail(words),
                    None => told,
                }
            }
        }
    }
}
