//! Rules about the code and its pages, and the tests' own tools.

mod pages;
mod readme;
mod release;
mod style;
mod toolbox;

/// README.md and every page of docs/.
fn pages() -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).expect("docs");
    let docs = docs.map(|entry| entry.expect("docs").path());
    let pages = docs.filter(|path| path.extension().is_some_and(|ext| ext == "md"));
    let mut pages: Vec<_> = pages.chain([root.join("README.md")]).collect();
    pages.sort();
    let read = |path: &std::path::PathBuf| std::fs::read_to_string(path).expect("a page");
    pages.iter().map(read).collect()
}
