//! The one place where the core's errors become Python exceptions.

use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyPermissionError};
use pyo3::import_exception;
use pyo3::prelude::*;

use crate::Error;

import_exception!(candlewick.errors, AdapterError);
import_exception!(candlewick.errors, CheckpointError);
import_exception!(candlewick.errors, ConfigError);
import_exception!(candlewick.errors, ContextLengthError);
import_exception!(candlewick.errors, DataError);
import_exception!(candlewick.errors, DeviceError);
import_exception!(candlewick.errors, InternalError);
import_exception!(candlewick.errors, InvalidArgumentError);
import_exception!(candlewick.errors, ModelNotFoundError);
import_exception!(candlewick.errors, OutOfMemoryError);
import_exception!(candlewick.errors, TrainingDivergedError);
import_exception!(candlewick.errors, UnsupportedModelError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Io { path, source } => {
                let path = path.display().to_string();
                let arguments = (source.raw_os_error(), source.to_string(), path);
                match (source.kind(), arguments.0) {
                    (std::io::ErrorKind::NotFound, Some(_)) => PyFileNotFoundError::new_err(arguments),
                    (std::io::ErrorKind::PermissionDenied, Some(_)) => PyPermissionError::new_err(arguments),
                    (std::io::ErrorKind::NotFound, None) => PyFileNotFoundError::new_err(message),
                    (_, Some(_)) => PyOSError::new_err(arguments),
                    (_, None) => PyOSError::new_err(message),
                }
            }
            Error::ModelNotFound { .. } => ModelNotFoundError::new_err(message),
            Error::UnsupportedModel { .. } => UnsupportedModelError::new_err(message),
            Error::InvalidConfig { .. } => ConfigError::new_err(message),
            Error::InvalidCheckpoint { .. } => CheckpointError::new_err(message),
            Error::InvalidAdapter { code, .. } => AdapterError::new_err((message, code)),
            Error::InvalidArgument { .. } => InvalidArgumentError::new_err(message),
            Error::InvalidData { origin, line, .. } => DataError::new_err((message, origin, line)),
            Error::ContextOverflow { .. } => ContextLengthError::new_err(message),
            Error::DeviceUnavailable { .. } => DeviceError::new_err(message),
            Error::OutOfMemory { .. } => OutOfMemoryError::new_err(message),
            Error::Diverged { step, loss } => TrainingDivergedError::new_err((message, step, loss)),
            Error::Internal { .. } => InternalError::new_err(message),
        }
    }
}
