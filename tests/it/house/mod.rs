//! Rules about the code and its pages, and the tests' own tools.

mod readme;
mod style;
mod toolbox;
