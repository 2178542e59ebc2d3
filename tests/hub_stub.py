"A stand-in for the Hugging Face hub on this machine: the few requests that uploading and loading a set need"
import base64, hashlib, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

class Hub(ThreadingHTTPServer):
    "Repositories in memory: name -> commits (dicts of files); `asked`: all requests; `race`: committed after a GET"
    daemon_threads = True
    def __init__(self, token='good'):
        super().__init__(('127.0.0.1', 0), Handler)
        self.token, self.repos, self.private, self.large = token, {}, set(), {}
        self.asked, self.fail, self.race = [], None, None
        threading.Thread(target=self.serve_forever, daemon=True).start()
    url = property(lambda self: f'http://127.0.0.1:{self.server_port}')
    def commit(self, repo, files): self.repos.setdefault(repo, []).append(dict(files))
    def files(self, repo): return self.repos[repo][-1]

def sha(n): return f'{n:040x}'

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass

    def answer(self, status, obj=None, raw=None, **headers):
        raw = json.dumps(obj if obj is not None else {}).encode() if raw is None else raw
        self.send_response(status)
        for k,v in {'Content-Type': 'application/json', 'Content-Length': str(len(raw)), **headers}.items():
            self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(raw)

    def refuse(self, status, code, said): self.answer(status, {'error': said}, X_Error_Code=code, X_Error_Message=said)

    def handle_one(self):
        hub, self.body = self.server, self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if 'chunked' in (self.headers.get('Transfer-Encoding') or ''): self.body = self.read_chunks()
        path = unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path))
        if hub.fail: return self.refuse(*hub.fail)
        known = self.headers.get('Authorization')==f'Bearer {hub.token}'
        part = path.strip('/').split('/')
        if part[0]=='large':
            hub.large[part[1]] = self.body
            return self.answer(200)   # a store of its own, whose addresses are the right to write
        if self.command in ('POST', 'PUT') and not known: return self.refuse(401, '', 'Invalid username or password.')
        if path=='/api/validate-yaml': return self.answer(200, dict(errors=[], warnings=[]))
        if path=='/api/repos/create': return self.create(json.loads(self.body))
        if part[-1]=='batch': return self.batch(json.loads(self.body))
        repo = '/'.join(part[2:4] if part[0]=='api' else part[1:3])
        if repo not in hub.repos or (repo in hub.private and not known):
            return self.refuse(401 if not known else 404, 'RepoNotFound', 'Repository not found')
        if part[0]=='api': return self.api(repo, part[4:])
        return self.resolve(repo, part[4], '/'.join(part[5:]))
    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def read_chunks(self):
        out = b''
        while n:=int(self.rfile.readline(), 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def create(self, a):
        repo = f"{a.get('organization') or 'ann'}/{a['name']}"
        if a.get('organization')=='bob':
            return self.refuse(403, '', "You don't have the rights to create a dataset under the namespace \"bob\"")
        there = repo in self.server.repos
        if not there: self.server.commit(repo, {'.gitattributes': b''})
        if a.get('private') or a.get('visibility')=='private': self.server.private.add(repo)
        obj = dict(url=f'{self.server.url}/datasets/{repo}', name=repo, id=sha(1))
        return self.answer(409 if there else 200, {**obj, 'error': 'You already created this dataset repo'} if there
                           else obj)

    def api(self, repo, rest):
        commits = self.server.repos[repo]
        if rest[:1]==['preupload']:
            mode = lambda f: 'lfs' if f.endswith(('.safetensors', '.parquet', '.tar', '.pt')) else 'regular'
            return self.answer(200, dict(files=[dict(path=f['path'], uploadMode=mode(f['path']), shouldIgnore=False)
                                                for f in json.loads(self.body)['files']]))
        if rest[:1]==['commit']:
            files = dict(commits[-1])
            for op in map(json.loads, self.body.decode().splitlines()):
                v = op['value']
                if op['key']=='file': files[v['path']] = base64.b64decode(v['content'])
                if op['key']=='lfsFile': files[v['path']] = self.server.large[v['oid']]
                if op['key']=='deletedFile': del files[v['path']]
            self.server.commit(repo, files)
            n = len(commits)-1
            return self.answer(200, dict(commitUrl=f'{self.server.url}/datasets/{repo}/commit/{sha(n)}',
                                         commitOid=sha(n), success=True))
        if rest[:1]==['tree']:
            return self.answer(200, [dict(type='file', path=f, size=len(b), oid=hashlib.sha1(b).hexdigest())
                                     for f,b in commits[-1].items()])
        return self.answer(200, dict(id=repo, sha=sha(len(commits)-1), private=repo in self.server.private,
                                     siblings=[dict(rfilename=f) for f in commits[-1]]))

    def batch(self, a):
        href = lambda o: dict(upload=dict(href=f"{self.server.url}/large/{o['oid']}",
                                          header={'Authorization': f'Bearer {self.server.token}'}))
        return self.answer(200, dict(transfer='basic',
                                     objects=[dict(oid=o['oid'], size=o['size'], actions=href(o))
                                              for o in a['objects']]))

    def resolve(self, repo, revision, name):
        commits = self.server.repos[repo]
        n = len(commits)-1 if revision=='main' else int(revision, 16) if len(revision)==40 else -1
        if not 0<=n<len(commits): return self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        if name not in commits[n]: return self.refuse(404, 'EntryNotFound', 'Entry not found')
        raw = commits[n][name]
        if self.command=='GET' and self.server.race:
            self.server.commit(repo, self.server.race)
            self.server.race = None   # somebody pushes while we load
        return self.answer(200, raw=raw, ETag=f'"{hashlib.sha256(raw).hexdigest()}"', X_Repo_Commit=sha(n),
                           Accept_Ranges='bytes')
