// Vktuned is the fair Go rival of kvedge's virtual node: Virtual Kubelet v1.13.0's public packages with
// every throttle opened and an in-memory mock provider equal to the stock one. For benchmarks only.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"path"
	"runtime"
	"sync"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

var (
	kubeconfig = flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig")
	name       = flag.String("nodename", "vktuned", "node name")
	ip         = flag.String("ip", "127.0.0.1", "node InternalIP")
	listen     = flag.String("listen", ":10250", "kubelet API address")
	cert       = flag.String("cert", "", "serving certificate")
	key        = flag.String("key", "", "serving key")
	qps        = flag.Float64("qps", 1000, "client QPS")
	burst      = flag.Int("burst", 2000, "client burst")
	workers    = flag.Int("workers", 50, "workers of each of the three queues")
	proto      = flag.Bool("proto", true, "speak protobuf with the API server")
	limiters   = flag.Bool("limiters", false, "keep the library's default queue rate limiters (10/s)")
	fast       = flag.Bool("fast-delete", false, "our addition: DELETE with grace 0 as soon as the provider has terminated the pod (the library waits out the grace period)")
	strip      = flag.Bool("strip", false, "our addition: drop managedFields from the informer's cache (the library compares pods with go-cmp, byte by byte)")
	latency    = flag.Duration("latency", 0, "provider latency of create and delete")
	pprofAddr  = flag.String("pprof", "", "pprof address")
)

// mock: what the stock mock provider does, made safe for concurrent use.
type mock struct {
	sync.RWMutex
	pods   map[string]*v1.Pod
	notify func(*v1.Pod)
	start  time.Time
	client kubernetes.Interface
}

func id(p *v1.Pod) string { return p.Namespace + "/" + p.Name }

func (m *mock) NotifyPods(_ context.Context, f func(*v1.Pod)) { m.notify = f }

func (m *mock) CreatePod(_ context.Context, pod *v1.Pod) error {
	time.Sleep(*latency)
	now := metav1.Now()
	pod.Status = v1.PodStatus{
		Phase: v1.PodRunning, HostIP: "1.2.3.4", PodIP: "5.6.7.8", StartTime: &now,
		Conditions: []v1.PodCondition{
			{Type: v1.PodInitialized, Status: v1.ConditionTrue},
			{Type: v1.PodReady, Status: v1.ConditionTrue},
			{Type: v1.PodScheduled, Status: v1.ConditionTrue},
		},
	}
	for _, c := range pod.Spec.Containers {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, v1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: now}}})
	}
	m.Lock()
	m.pods[id(pod)] = pod
	m.Unlock()
	m.notify(pod)
	return nil
}

func (m *mock) UpdatePod(_ context.Context, pod *v1.Pod) error {
	m.Lock()
	m.pods[id(pod)] = pod
	m.Unlock()
	m.notify(pod)
	return nil
}

func (m *mock) DeletePod(ctx context.Context, pod *v1.Pod) error {
	m.Lock()
	if _, ok := m.pods[id(pod)]; !ok {
		m.Unlock()
		return errdefs.NotFound("pod not found")
	}
	delete(m.pods, id(pod))
	m.Unlock()
	time.Sleep(*latency)
	now := metav1.Now()
	pod.Status.Phase, pod.Status.Reason = v1.PodSucceeded, "MockProviderPodDeleted"
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		t := &v1.ContainerStateTerminated{Reason: "MockProviderPodContainerDeleted", FinishedAt: now}
		if s.State.Running != nil {
			t.StartedAt = s.State.Running.StartedAt
		}
		s.Ready, s.State = false, v1.ContainerState{Terminated: t}
	}
	if *fast && pod.DeletionTimestamp != nil { // no status write: the object goes at once
		zero, uid := int64(0), pod.UID
		return m.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid}})
	}
	m.notify(pod)
	return nil
}

func (m *mock) GetPod(_ context.Context, ns, n string) (*v1.Pod, error) {
	m.RLock()
	defer m.RUnlock()
	if p, ok := m.pods[ns+"/"+n]; ok {
		return p, nil
	}
	return nil, errdefs.NotFoundf("pod %s/%s unknown", ns, n)
}

func (m *mock) GetPodStatus(ctx context.Context, ns, n string) (*v1.PodStatus, error) {
	p, err := m.GetPod(ctx, ns, n)
	if err != nil {
		return nil, err
	}
	return &p.Status, nil
}

func (m *mock) GetPods(context.Context) ([]*v1.Pod, error) {
	m.RLock()
	defer m.RUnlock()
	out := make([]*v1.Pod, 0, len(m.pods))
	for _, p := range m.pods {
		out = append(out, p)
	}
	return out, nil
}

func (m *mock) stats(ctx context.Context) (*stats.Summary, error) {
	pods, _ := m.GetPods(ctx)
	now, zero := metav1.Now(), uint64(1000)
	s := &stats.Summary{Node: stats.NodeStats{NodeName: *name, StartTime: metav1.NewTime(m.start)}}
	for _, p := range pods {
		ps := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, StartTime: p.CreationTimestamp}
		for _, c := range p.Spec.Containers {
			ps.Containers = append(ps.Containers, stats.ContainerStats{Name: c.Name, StartTime: p.CreationTimestamp,
				CPU: &stats.CPUStats{Time: now, UsageNanoCores: &zero}, Memory: &stats.MemoryStats{Time: now, UsageBytes: &zero}})
		}
		s.Pods = append(s.Pods, ps)
	}
	return s, nil
}

func (m *mock) metrics(ctx context.Context) ([]*dto.MetricFamily, error) {
	str := func(s string) *string { return &s }
	typ, val := dto.MetricType_COUNTER, 1.0
	fam := func(n string) *dto.MetricFamily { return &dto.MetricFamily{Name: str(n), Help: str(n), Type: &typ} }
	pf, cf := fam("pod_cpu_usage_seconds_total"), fam("container_cpu_usage_seconds_total")
	lab := func(kv ...string) *dto.Metric {
		out := &dto.Metric{Counter: &dto.Counter{Value: &val}}
		for i := 0; i < len(kv); i += 2 {
			out.Label = append(out.Label, &dto.LabelPair{Name: str(kv[i]), Value: str(kv[i+1])})
		}
		return out
	}
	pods, _ := m.GetPods(ctx)
	for _, p := range pods {
		pf.Metric = append(pf.Metric, lab("namespace", p.Namespace, "pod", p.Name))
		for _, c := range p.Spec.Containers {
			cf.Metric = append(cf.Metric, lab("namespace", p.Namespace, "pod", p.Name, "container", c.Name))
		}
	}
	return []*dto.MetricFamily{pf, cf}, nil
}

func limiter() workqueue.TypedRateLimiter[any] {
	if *limiters {
		return workqueue.DefaultTypedControllerRateLimiter[any]()
	}
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](5*time.Millisecond, 30*time.Second)
}

func must[T any](v T, err error) T {
	if err != nil {
		klog.Fatal(err)
	}
	return v
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("vktuned 1.13.0")
		return
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *pprofAddr != "" {
		go http.ListenAndServe(*pprofAddr, nil) //nolint:errcheck
	}

	rc := must(clientcmd.BuildConfigFromFlags("", *kubeconfig))
	rc.QPS, rc.Burst = float32(*qps), *burst
	if *proto {
		rc.ContentType, rc.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	}
	client := must(kubernetes.NewForConfig(rc))
	nodeClient := must(kubernetes.NewForConfig(rc)) // own token bucket: leases and node status never wait behind pods

	pf := informers.NewSharedInformerFactoryWithOptions(client, 0, nodeutil.PodInformerFilter(*name))
	sf := informers.NewSharedInformerFactory(client, 0)
	pods, secrets, cms, svcs := pf.Core().V1().Pods(), sf.Core().V1().Secrets(), sf.Core().V1().ConfigMaps(), sf.Core().V1().Services()

	if *strip {
		must(0, pods.Informer().SetTransform(func(o any) (any, error) {
			if p, ok := o.(*v1.Pod); ok {
				p.ManagedFields = nil
			}
			return o, nil
		}))
	}
	m := &mock{pods: map[string]*v1.Pod{}, start: time.Now(), client: client}
	eb := record.NewBroadcaster()
	eb.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	defer eb.Shutdown()
	pc := must(node.NewPodController(node.PodControllerConfig{
		PodClient: client.CoreV1(), PodInformer: pods, SecretInformer: secrets, ConfigMapInformer: cms, ServiceInformer: svcs,
		EventRecorder: eb.NewRecorder(scheme.Scheme, v1.EventSource{Component: path.Join(*name, "pod-controller")}), Provider: m,
		SyncPodsFromKubernetesRateLimiter: limiter(), DeletePodsFromKubernetesRateLimiter: limiter(), SyncPodStatusFromProviderRateLimiter: limiter(),
	}))

	q := func(s string) resource.Quantity { return resource.MustParse(s) }
	res := v1.ResourceList{"cpu": q("1000"), "memory": q("4Ti"), "pods": q("20000")}
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: *name, Labels: map[string]string{"type": "virtual-kubelet", "kubernetes.io/role": "agent", "kubernetes.io/hostname": *name}},
		Spec: v1.NodeSpec{Taints: []v1.Taint{{Key: "virtual-kubelet.io/provider", Value: "mock", Effect: v1.TaintEffectNoSchedule}}},
		Status: v1.NodeStatus{Phase: v1.NodeRunning, Capacity: res, Allocatable: res,
			NodeInfo:        v1.NodeSystemInfo{OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, KubeletVersion: "v1.35.4-vk-tuned"},
			Addresses:       []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: *ip}},
			DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: 10250}},
			Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "Kubelet is ready",
				LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}}}
	nc := must(node.NewNodeController(node.NaiveNodeProvider{}, n, nodeClient.CoreV1().Nodes(), node.WithNodeEnableLeaseV1(nodeutil.NodeLeaseV1Client(nodeClient), node.DefaultLeaseDuration)))

	if *cert != "" {
		mux := http.NewServeMux()
		api.AttachPodRoutes(api.PodHandlerConfig{
			GetPods: m.GetPods, GetStatsSummary: m.stats, GetMetricsResource: m.metrics,
			GetPodsFromKubernetes: func(context.Context) ([]*v1.Pod, error) { return pods.Lister().List(labels.Everything()) },
		}, mux, true)
		pair := must(tls.LoadX509KeyPair(*cert, *key))
		l := must(tls.Listen("tcp", *listen, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
		go http.Serve(l, mux) //nolint:errcheck
	}

	pf.Start(ctx.Done())
	sf.Start(ctx.Done())
	go pc.Run(ctx, *workers) //nolint:errcheck
	<-pc.Ready()
	go nc.Run(ctx) //nolint:errcheck
	select {
	case <-nc.Ready():
	case <-nc.Done():
		klog.Fatal(nc.Err())
	}
	klog.Info("ready")
	<-ctx.Done()
}
