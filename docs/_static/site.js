// What the theme leaves out: levels of the captions in the sidebar, and blocks that scroll within reach of the keyboard
document.addEventListener('DOMContentLoaded', () => {
  for (const o of document.querySelectorAll('[role=heading]:not([aria-level])')) o.setAttribute('aria-level', '2');
  for (const o of document.querySelectorAll('pre, .table-wrapper, .cell_output, .output, div.math')) if (o.scrollWidth > o.clientWidth) o.tabIndex = 0;
});
