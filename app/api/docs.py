"""GET /docs, to which GET / leads: all routes and their schemas, in a page that loads nothing from elsewhere."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Roundhouse API</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
summary{cursor:pointer;padding:.3rem 0}code,pre{font:14px/1.4 ui-monospace,monospace}
pre{background:#8881;padding:.7rem;overflow:auto}b{display:inline-block;min-width:4rem}</style>
<h1>Roundhouse API</h1><p>The document itself: <a href="/openapi.json">/openapi.json</a></p><main>Loading…</main>
<script>
const el=(tag,text,...kids)=>{const e=document.createElement(tag);
 if(text)e.textContent=text;e.append(...kids);return e};
fetch("/openapi.json").then(r=>r.json()).then(api=>{
 const seen=new Set(),resolve=s=>{if(Array.isArray(s))return s.map(resolve);if(!s||typeof s!=="object")return s;
  if(s.$ref){const n=s.$ref.split("/").pop();if(seen.has(n))return n;seen.add(n);
   const r=resolve(api.components.schemas[n]);seen.delete(n);return r}
  return Object.fromEntries(Object.entries(s).map(([k,v])=>[k,resolve(v)]))};
 const main=document.querySelector("main");main.textContent="";
 for(const [path,methods] of Object.entries(api.paths))for(const [method,op] of Object.entries(methods)){
  const d=el("details","",
   el("summary","",el("b",method.toUpperCase()),el("code",path),el("span"," "+(op.summary||""))));
  if(op.description)d.append(el("p",op.description));
  if(op.parameters)d.append(el("h4","Parameters"),el("pre",JSON.stringify(resolve(op.parameters),null,1)));
  if(op.requestBody)d.append(el("h4","Body"),el("pre",JSON.stringify(resolve(op.requestBody.content),null,1)));
  d.append(el("h4","Answers"),el("pre",JSON.stringify(resolve(op.responses),null,1)));main.append(d)}
}).catch(e=>{document.querySelector("main").textContent="Cannot read /openapi.json: "+e});
</script></html>"""


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"content-security-policy": POLICY})


@router.api_route("/", methods=["GET", "HEAD"])
async def root() -> RedirectResponse:
    """For a browser that was given the server's address alone."""
    return RedirectResponse("/docs")
