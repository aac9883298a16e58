// How results of the search are ordered. `PAGES` says for each page its subtitle and its kind; the build writes it above.
// A word counts most in the title of a page, then in its subtitle, in the heading that was found, and in the text.
// Where that is equal, tutorials and what `from compresscal import` offers come before inner modules, and these before studies.

const COUNTS = {title: 20, subtitle: 10, heading: 12, text: 3}
const KINDS = {tutorials: 4, offered: 3, explanations: 2, studies: -2}

const stems = text => {
  const stemmer = new Stemmer()
  return text.toLowerCase().split(/[^\p{Letter}\p{Number}]+/u).filter(o => o && !stopwords.has(o)).map(o => stemmer.stemWord(o))
}

const rank = ([page, title, anchor]) => {
  const query = stems(new URLSearchParams(window.location.search).get('q') || '')
  const [subtitle, kind] = PAGES[page] || ['', '']
  const heading = anchor ? title.slice(title.indexOf(' > ')+3) : ''
  const places = anchor ? {heading} : {title, subtitle}
  const words = Object.fromEntries(Object.entries(places).map(([place, text]) => [place, stems(text)]))
  const best = word => Math.max(COUNTS.text, ...Object.keys(words).filter(o => words[o].includes(word)).map(o => COUNTS[o]))
  const found = query.map(best).reduce((a, b) => a+b, 0)
  const named = words.title || words.heading
  const whole = query.length && query.every(o => named.includes(o)) ? 8*query.length/named.length : 0 // the less else it says, the better
  return found + whole + (found>COUNTS.text*query.length ? KINDS[kind] || 0 : 0)
}

var Scorer = {
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0, title: 15, partialTitle: 7, term: 5, partialTerm: 2, // as Sphinx has them
  score: result => {
    if (!result[2] && PAGES[result[0]]) result[3] = PAGES[result[0]][0] // the subtitle is shown beside the title
    return rank(result)
  },
}
