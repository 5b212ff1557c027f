// What puts the page together.

// ---------------------------------------------------------------- pictures, notes, navigation

function pictures() {
  if (!filled(DATA.pictures)) return false;
  $("pictures-list").append(...DATA.pictures.map((one) => el("figure", { class: "card wide" },
    el("h3", {}, one.title, " ", named(one.model)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": one.title }, picture(one.src, one.title, { loading: "lazy" })),
    one.text ? el("figcaption", {}, one.text) : null)));
  return true;
}

function notes() {
  if (!filled(DATA.notes)) return false;
  $("notes-list").append(...DATA.notes.map((note) => el("li", {}, note)));
  return true;
}

/** Links to the sections that are there; the one in view is marked. */
function navigation() {
  const links = new Map();
  for (const section of document.querySelectorAll("section[data-nav]")) {
    const link = el("a", { href: `#${section.id}` }, section.dataset.nav);
    links.set(section, link);
    $("nav").firstElementChild.append(el("li", {}, link));
  }
  const list = $("nav").firstElementChild;
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(target);
      link.setAttribute("aria-current", "true");
      list.scrollLeft = link.offsetLeft - list.clientWidth / 2 + link.offsetWidth / 2;
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  links.forEach((_, section) => watch.observe(section));
}

function start() {
  const parts = { curves, results, correspondence, pca, attention, cka, spectrum, neighbours, pictures, notes };
  overview();
  for (const [id, part] of Object.entries(parts)) if (!part()) $(id).remove();
  navigation();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => charts.forEach(draw));
  document.documentElement.dataset.ready = "yes";
}

start();
