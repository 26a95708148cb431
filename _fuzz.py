import json, random, struct, sys, time, copy, tempfile, resource, hashlib, signal
from pathlib import Path
from dataclasses import replace
import numpy as np
import safetensors.numpy
from y7edge.errors import Y7EdgeError
from y7edge.models import registry, scale, weights, shapes
from y7edge.models.checkpoint import canonical_json, Checkpoint
from tests.models.test_weights import checkpoint
from y7edge.cli.info import _checkpoint
base=registry.deploy(scale(registry.get("yolov7",nc=3),width=0.0625)) if len(sys.argv)>2 else scale(registry.get("yolov7-tiny",nc=3),width=0.0625)
ck=checkpoint(base, meta={"imgsz":64,"epoch":3,"licence":"MIT","thresholds":{"conf":.3},"data":{"path":"x"},"names":[1]})
arr={k:np.asarray(v) for k,v in ck.arrays.items()}
odd=[None,True,False,0,-1,1,2,3,5,7,10**9,2**63,10**30,0.5,-0.0,1e308,float("1e39"),"","x","a"*100000,"\x1b[0m",[],[[]],{}, [1,2],[0,0],{"a":1},[[[1,1]]],"conv","head","concat","sum","repconv","maxpool","sppcspc","downc","reorg","upsample","folded","deploy","training","silu",16384,4096,8192,64]
def leaves(v,path=()):
    yield path
    if isinstance(v,dict):
        for k in v: yield from leaves(v[k],(*path,k))
    elif isinstance(v,list):
        for i in range(len(v)): yield from leaves(v[i],(*path,i))
def put(v,path,x):
    if not path: return x
    v=copy.copy(v); v[path[0]]=put(v[path[0]],path[1:],x); return v
rng=random.Random(int(sys.argv[1]))
header=json.loads(canonical_json({"schema":1,"spec":ck.spec.to_dict(),"names":list(ck.names),"meta":ck.meta,"digest":""}))
paths=list(leaves(header))
p=Path(tempfile.mkdtemp())/"m.safetensors"
stats={}
def use(c):
    from y7edge.artifact.description import describe
    from y7edge.models.registry import folded, without_auxiliary, deploy
    from y7edge.nn.build import from_checkpoint
    from y7edge.nn.eager import EagerSession, describe as d2
    from y7edge.runtimes.base import SessionOptions
    from y7edge.detect.detector import Detector
    from y7edge.export.folding import fold_checkpoint
    from y7edge.export.graph import build
    from y7edge.models import planning
    m=from_checkpoint(c)
    s=EagerSession(m,d2(c,c.imgsz),SessionOptions(device="cpu",threads=1))
    d=Detector.from_session(s,s.manifest); d(np.zeros((50,60,3),np.uint8))
    f=fold_checkpoint(c)
    build.build_graph(f,height=c.imgsz[0],width=c.imgsz[1])
    planning.plan(c.spec)
    try: scale(c.spec,depth=2,width=.5)
    except Y7EdgeError: pass
t_end=time.time()+float(60)
n=0
while time.time()<t_end:
    h=header
    for _ in range(rng.choice([1,1,1,2])):
        path=rng.choice(paths)
        try: h=put(h,path,rng.choice(odd))
        except (KeyError,IndexError,TypeError): pass
    # digest right, weights refit where the spec is valid
    a=arr
    if isinstance(h,dict):
        try:
            h["digest"]=h.get("digest")
            spec=json.loads(json.dumps(h["spec"])); 
            from y7edge.artifact.schema import decode
            from y7edge.models.spec import Spec
            sp=decode(Spec,spec,origin="",error=Y7EdgeError)
            sh=shapes.weight_shapes(sp)
            if sum(int(np.prod(s)) for s in sh.values())<2e7:
                a={k:(np.zeros(s,np.int64) if k.endswith("tracked") else np.full(s,.01,np.float32)) for k,s in sh.items()}
                k=f"rows.{sp.head.index}.anchors"; a[k]=(np.array(sp.anchors)/np.array(sp.strides)[:,None,None]).astype(np.float32)
                h=dict(h); h["digest"]=Checkpoint(sp,a,tuple(h["names"]),{}).digest
        except Exception: pass
    try: text=json.dumps(h)
    except Exception: continue
    safetensors.numpy.save_file(a,p,metadata={"y7edge":text})
    n+=1
    t=time.time()
    stage="load"
    try:
        c=weights.load(p); stage="info"; _checkpoint(p,None); stage="use"; use(c); r="ok"
    except Y7EdgeError as e: r=f"{stage} {type(e).__name__}"
    except Exception as e:
        r="RAW"; import traceback; print(stage, "RAW",repr(e)[:200],path, [x for x in [h]][0].get("meta") if isinstance(h,dict) else ""); traceback.print_exc(limit=-3)
    if time.time()-t>4: print("SLOW",time.time()-t,path,r)
    stats[r]=stats.get(r,0)+1
print(n,stats,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
