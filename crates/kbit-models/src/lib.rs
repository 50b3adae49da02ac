//! Model architectures as data: hyper-parameters, tensor names, source expressions, metadata.
