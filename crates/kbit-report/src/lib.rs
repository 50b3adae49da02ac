//! Measurements to HTML, Markdown, SVG, CSV and JSON.
