//! One YAML file to a plan, a run and a report: cache, resume, progress, provenance.
